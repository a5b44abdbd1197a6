"""SageMaker Debugger's hook, a plug-in: ``debugger=smdebug``. Only ``hook`` needs the library."""

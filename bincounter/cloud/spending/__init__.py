"""What was spent, and on what: records read (``records``, ``endpoints``), added up (``bills``), and shown.

Instances are what is counted: SageMaker bills ``BillableTimeInSeconds`` of a training job at the on-demand price of its
instances, spot or not (https://docs.aws.amazon.com/sagemaker/latest/dg/model-managed-spot-training.html). Disks,
storage, logs, the network and what a warm pool keeps after a job come on top, mostly cents, and are in no record of
ours.

A *point* is one percentage point of accuracy above the majority baseline, which answers every photo with the most
frequent count of the training photos: a run of 62 % accuracy where the baseline has 25 % has gained 37 points, and at
0.74 US dollars each of them cost 0.02. The test photos decide, the validation photos where a run has no test score. A
search costs what all its jobs cost, and gains the points of its best run by validation accuracy.
"""

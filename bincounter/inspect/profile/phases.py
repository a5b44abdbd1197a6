"""Which phase of training each moment belongs to, told by the actions that Lightning names as it starts them."""

from functools import cache

DATA, TRANSFER, AUGMENTATION = "data", "transfer", "augmentation"
FORWARD, BACKWARD, OPTIMIZER = "forward", "backward", "optimizer"
LOGGING, DEBUGGER, CHECKPOINT, VALIDATION, REST = "logging", "debugger", "checkpoint", "validation", "rest"

PHASES = {
    DATA: "Waiting for data",
    TRANSFER: "Transfer to the device",
    AUGMENTATION: "Augmentation",
    FORWARD: "Forward",
    BACKWARD: "Backward",
    OPTIMIZER: "Optimizer",
    LOGGING: "Logging and progress",
    DEBUGGER: "Debugger",
    CHECKPOINT: "Checkpoints",
    VALIDATION: "Validation",
    REST: "Rest",
}
"""All phases, by the names of the files' columns."""

NEXT_BATCH = "train_dataloader_next"

# The ends of actions' names, without their class; see Lightning's trainer/call.py and loops.
_BY_HOOK = {
    NEXT_BATCH: DATA,
    "batch_to_device": TRANSFER,
    "on_after_batch_transfer": AUGMENTATION,
    "training_step": FORWARD,
    "backward": BACKWARD,
    "optimizer_step": OPTIMIZER,
    "optimizer_zero_grad": OPTIMIZER,
    "on_before_optimizer_step": OPTIMIZER,
    "configure_gradient_clipping": OPTIMIZER,
    "lr_scheduler_step": OPTIMIZER,
    "save_checkpoint": CHECKPOINT,
}
_BY_CALLBACK = {
    "RunCheckpoint.on_train_epoch_end": CHECKPOINT,  # with the handing over of the best
    "RunCheckpoint": REST,  # under DDP it waits for the others after each step; writing has an action of its own
    "WeightAveraging": OPTIMIZER,
    "StatelessRandomness": REST,
    "TensorRecorder": DEBUGGER,
    "SmdebugCallback": DEBUGGER,
}


@cache  # there are a few dozen of them, and each comes in every step
def phase_of(action: str) -> str | None:
    """The phase that an action of Lightning's opens.

    Args:
        action: its name, such as ``[Strategy]SingleDeviceStrategy.backward`` or ``save_checkpoint``.

    Returns:
        ``None`` where it belongs to the phase around it.
    """
    kind, _, name = action.rpartition("]")
    hook = name.rpartition(".")[2]
    if kind == "[Callback" and not hook.endswith(("_save_checkpoint", "_load_checkpoint")):
        # Progress bars, logs, and whatever else a user added to look on.
        return next((phase for part, phase in _BY_CALLBACK.items() if part in name), LOGGING)
    return _BY_HOOK.get(hook)


def ends_a_step(action: str) -> bool:
    """Whether what begins with an action is no part of a step any more, but of the end of an epoch."""
    return action.endswith((".on_validation_start", ".on_validation_model_zero_grad", ".on_train_epoch_end"))


def ends_the_work_of_a_step(action: str) -> bool:
    """Whether Lightning has nothing but metrics and loggers left to look after once an action is over."""
    return action.startswith("[LightningModule]") and action.endswith(".on_train_batch_end")

"""What the tests that train with TRL tell it, so that it draws nothing and its steps are ours."""

# Where a gradient is rounding alone (GPT-NeoX's bias of a key outside the rotary part, which no softmax sees), Adam
# with an eps of 1e-8 turns rounding into steps of the learning rate; 1e-6 keeps it rounding.
EPS = 1e-6


def arguments(**more) -> dict:
    """The arguments of any of TRL's configurations; `more` are those of the run."""
    return {
        "max_length": None,
        "adam_epsilon": EPS,
        "weight_decay": 0.0,
        "lr_scheduler_type": "constant",
        "train_sampling_strategy": "sequential",
        "gradient_checkpointing": False,
        "use_cpu": True,
        "bf16": False,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        **more,
    }

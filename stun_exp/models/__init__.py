"""Architectures that transformers lacks (arctic), or whose experts it leaves unfused (fused.py and those it names)."""


def register() -> None:
    """Makes AutoConfig, AutoModelForCausalLM and the loader of checkpoints know Arctic. May be called again.

    A config.json that names its own code (`auto_map`) then needs no remote code: registered classes come first.
    """
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.conversion_mapping import register_checkpoint_conversion_mapping

    from stun_exp.models.arctic.configuration import ArcticConfig
    from stun_exp.models.arctic.conversion import checkpoint_conversion
    from stun_exp.models.arctic.modeling import ArcticForCausalLM

    AutoConfig.register(ArcticConfig.model_type, ArcticConfig, exist_ok=True)
    AutoModelForCausalLM.register(ArcticConfig, ArcticForCausalLM, exist_ok=True)
    register_checkpoint_conversion_mapping(ArcticConfig.model_type, checkpoint_conversion(), overwrite=True)

"""Tell transformers' Auto classes about ParScale models, without importing transformers for it.

`import parcontrol` calls `register_auto_classes`; the work is done if and when somebody imports the Auto classes, so
that commands which need no model start at once. Checkpoints of other backbones carry their own code and load with
`trust_remote_code=True`, or after `convert_to_parscale_model` has made their class.
"""

import sys
from types import ModuleType

import wrapt

ARCHITECTURES = ("Qwen2", "Llama", "Qwen3", "Mistral")


def register_auto_classes() -> None:
    """Register every architecture, at P ≥ 1 and for P = 1 with a prefix, when the Auto classes are imported."""
    wrapt.register_post_import_hook(_register_configs, "transformers.models.auto.configuration_auto")
    wrapt.register_post_import_hook(_register_models, "transformers.models.auto.modeling_auto")


def _names(kind: str) -> list[str]:
    return [f"{base}ParScale{prefix}{kind}" for base in ARCHITECTURES for prefix in ("", "Prefix")]


def _register_configs(auto: ModuleType) -> None:
    if "transformers.models.auto.modeling_auto" in sys.modules:
        return  # in the middle of its own import, when no model can be imported yet; its hook comes next

    from parcontrol.parscale import configuration_parscale

    for name in _names("Config"):
        config_class = getattr(configuration_parscale, name)
        auto.AutoConfig.register(config_class.model_type, config_class, exist_ok=True)


def _register_models(auto: ModuleType) -> None:
    from transformers import AutoConfig

    from parcontrol.parscale import modeling_parscale

    for name in _names("ForCausalLM"):
        model_class = getattr(modeling_parscale, name)
        config_class = model_class.config_class
        AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
        auto.AutoModelForCausalLM.register(config_class, model_class, exist_ok=True)

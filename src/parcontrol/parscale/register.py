"""Tell transformers' Auto classes about ParScale models, without importing transformers for it.

`import parcontrol` calls `register_auto_classes`; the work is done if and when somebody imports the Auto classes, so
that commands which need no model start at once. Checkpoints of other backbones carry their own code and load with
`trust_remote_code=True`.

The Auto classes are imported in the middle of transformers' own imports, where neither a configuration nor a model
class can be made yet. So nothing is imported then: our names join the Auto classes' own tables, which look classes up
in a module when they are asked for, and that module is a proxy that imports ours on first use.
"""

from types import ModuleType

import wrapt

# Tested backbones. Their model type is their name in lower case.
ARCHITECTURES = (
    "Gemma",
    "Granite",
    "Llama",
    "Mistral",
    "Olmo",
    "Olmo2",
    "Phi3",
    "Qwen2",
    "Qwen3",
    "SmolLM3",
    "Starcoder2",
)


def register_auto_classes() -> None:
    """Register every architecture, at P ≥ 1 and for P = 1 with a prefix, when the Auto classes are imported."""
    wrapt.register_post_import_hook(_register_configs, "transformers.models.auto.configuration_auto")
    wrapt.register_post_import_hook(_register_models, "transformers.models.auto.modeling_auto")


def _names() -> dict[str, str]:
    """Model types with the start of their class names, such as `qwen2_parscale`: `Qwen2ParScale`."""
    plain = {f"{base.lower()}_parscale": f"{base}ParScale" for base in ARCHITECTURES}
    return plain | {f"{model_type}_prefix": f"{name}Prefix" for model_type, name in plain.items()}


def _register_configs(auto: ModuleType) -> None:
    ours = wrapt.lazy_import("parcontrol.parscale.configuration_parscale")
    for model_type, name in _names().items():
        auto.CONFIG_MAPPING._mapping[model_type] = f"{name}Config"
        auto.CONFIG_MAPPING._modules[model_type] = ours


def _register_models(auto: ModuleType) -> None:
    ours = wrapt.lazy_import("parcontrol.parscale.modeling_parscale")
    mapping = auto.MODEL_FOR_CAUSAL_LM_MAPPING
    for model_type, name in _names().items():
        mapping._reverse_config_mapping[f"{name}Config"] = model_type
        mapping._model_mapping[model_type] = f"{name}ForCausalLM"
        mapping._modules[model_type] = ours

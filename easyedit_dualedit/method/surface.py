"""What the base model can do and an edited model cannot do truthfully, with what to do instead.

Everything else is in `docs/guide/surface.md`.
"""

_IN_BATCHES = (
    "it would answer unedited, since its forwards mix the tokens of several prompts; give generate"
    " several rows"
)
_SAVES = (
    "it would save the base model without the edits; save edits with EditMemory, adapters with"
    " DualEditor.save, and the base model itself with base_model."
)

REFUSED_METHODS = {
    "generate_batch": _IN_BATCHES,
    "init_continuous_batching": _IN_BATCHES,
    "continuous_batching_context_manager": _IN_BATCHES,
    "get_compiled_call": "it would give code that knows no edits; call compile, then the edited"
    " model",
    "heal_tokens": "it would generate the last token unedited; heal the prompt with"
    " base_model.heal_tokens, then generate",
    "save_pretrained": _SAVES + "save_pretrained",
    "push_to_hub": _SAVES + "push_to_hub",
    "save_distributed_checkpoint": _SAVES + "save_distributed_checkpoint",
}
"""Method -> what it would do, and what to do instead."""

REFUSED_OPTIONS = {
    "prefill_chunk_size": (
        0,
        "it splits the prompt over several forwards; an edit needs the whole prompt at once:"
        " leave it out",
    ),
    "guidance_scale": (
        1,
        "it asks the model a second prompt, in which no edit has a place; leave it out, or weigh"
        " the answers of two models in a logits processor of yours",
    ),
    "token_healing": (
        False,
        "it changes the prompt within generate; heal the prompt with base_model.heal_tokens, and"
        " generate from that",
    ),
}
"""Option of `generate` -> the value that means no, why others are refused, and what to do."""

"""What becomes of all that can be asked of a transformers model, when it is edited.

python tests/surface_table.py docs/guide/surface.md writes the page.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from easyedit_dualedit.method.surface import REFUSED_METHODS, REFUSED_OPTIONS


@dataclass(frozen=True)
class Rows:
    """Names of which the same holds."""

    kind: str
    """edited, as the base model, unedited part, changes the base model, or refused."""
    says: str
    names: str
    """Separated by spaces."""

    def __iter__(self) -> Iterator[str]:
        """Go through the names."""
        return iter(self.names.split())


EDITED, SAME, PART = "edited", "as the base model", "unedited part"
CHANGES, REFUSED = "changes the base model", "refused"

METHODS = (
    Rows(EDITED, "edits are applied", "forward generate"),
    Rows(
        SAME,
        "says something of the base model, of its weights or of finished answers; edits do not"
        " matter to it, and are in no list of weights or modules",
        "T_destination active_adapters adjust_generation_fn base_model_prefix buffers"
        " call_super_init can_generate can_record_outputs children compute_transition_scores"
        " config_class create_masks_for_generate device dtype dummy_inputs dump_patches ep_plan"
        " extra_repr from_pretrained fsdp_plan fsdp_size gather_sharded_state_dict_for_save"
        " generation_config_class get_adapter_state_dict get_buffer get_correct_attn_implementation"
        " get_correct_experts_implementation get_expanded_tied_weights_keys"
        " get_experts_implementation get_extra_state get_init_context get_memory_footprint"
        " get_parameter get_parameter_or_buffer get_placeholder_mask get_position_embeddings"
        " get_submodule input_modalities is_activation_checkpointing is_backend_compatible"
        " is_custom_code is_distributed_loading_by_transformers is_gradient_checkpointing"
        " is_remote_code load_custom_generate loss_function main_input_name model_tags modules"
        " named_buffers named_children named_modules named_non_persistent_buffers"
        " named_parameters num_parameters output_modalities pack_image_features parameters pp_plan"
        " prepare_inputs_for_generation register_for_auto_class retrieve_modules_from_names"
        " should_save_on_this_rank state_dict supports_context_parallel"
        " supports_gradient_checkpointing supports_pp_plan supports_tp_plan tp_plan tp_size"
        " use_kernels warn_if_padding_and_no_attention_mask accepts_loss_kwargs"
        " barrier_after_gathered_checkpoint_save destroy_cached_continuous_batching_manager",
    ),
    Rows(
        SAME,
        "features of pictures and videos, which lie below every edit",
        "get_image_features get_video_features",
    ),
    Rows(
        PART,
        "gives a part of the base model; called by itself it knows no edit. `base_model` is the"
        " whole unedited model, not transformers' inner one",
        "base_model get_decoder get_encoder get_input_embeddings get_output_embeddings",
    ),
    Rows(
        CHANGES,
        "moves or converts the base model, for all that use it; what it returns is the edited model"
        " where the base model would return itself. Adapters and edits stay where and as they are"
        " (`editor.to(...)` moves them)",
        "bfloat16 cpu cuda double eval float half ipu mtia requires_grad_ share_memory to to_empty"
        " train type xpu",
    ),
    Rows(
        CHANGES,
        "how the base model computes, for all that use it; edited forwards do the same",
        "activation_checkpointing_disable activation_checkpointing_enable compile"
        " disable_input_require_grads enable_input_require_grads gradient_checkpointing_disable"
        " gradient_checkpointing_enable maybe_distribute_model prepare_distribute_model"
        " register_backward_hook register_forward_hook register_forward_pre_hook"
        " register_full_backward_hook register_full_backward_pre_hook set_attn_implementation"
        " set_experts_implementation set_use_kernels init_parallel_plans",
    ),
    Rows(
        CHANGES,
        "weights or parts of the base model, for all that use it; an edit that was read before was"
        " read from the old ones, so read it again",
        "add_adapter add_model_tags add_module apply delete_adapter dequantize disable_adapters"
        " enable_adapters enable_peft_hotswap init_weights initialize_weights load_adapter"
        " load_state_dict mark_tied_weights_as_initialized post_init register_buffer"
        " register_load_state_dict_post_hook register_load_state_dict_pre_hook register_module"
        " register_parameter register_state_dict_post_hook register_state_dict_pre_hook"
        " resize_position_embeddings resize_token_embeddings set_adapter set_decoder set_encoder"
        " set_extra_state set_input_embeddings set_output_embeddings set_submodule smart_apply"
        " tie_weights zero_grad",
    ),
    *(Rows(REFUSED, reason, name) for name, reason in REFUSED_METHODS.items()),
)
"""Public methods and attributes of the classes."""

FIELDS = (
    Rows(EDITED, "those of the edited forward", "loss logits language_model_outputs"),
    Rows(
        EDITED,
        "from the output of the first edited layer on; what a layer gives is shown after its edit",
        "hidden_states attentions",
    ),
    Rows(
        EDITED,
        "holds the edit, and so does a deep copy: a step that continues it needs nothing more, but"
        " is one of the edited model that began (`cache` since transformers 5.24): that of another,"
        " such as `EditMemory.model` after a change or a check, is refused, and one of the base"
        " model lacks what the text adapter adds to each answer token. Its rows stay in their"
        " order: see below",
        "cache past_key_values",
    ),
    Rows(
        SAME,
        "lie below every edit",
        "image_hidden_states video_hidden_states vision_outputs qformer_outputs rope_deltas"
        " image_outputs video_outputs audio_outputs",
    ),
    Rows(
        EDITED,
        "of `generate`",
        "sequences sequences_scores scores beam_indices",
    ),
)
"""Fields of what a call, or `generate` with `return_dict_in_generate`, returns."""

ARGUMENTS = (
    Rows(EDITED, "needed: it tells pictures from text", "input_ids"),
    Rows(REFUSED, "`PromptEndError`: give token ids", "inputs_embeds"),
    Rows(EDITED, "two dimensions, 1 at real tokens; others are refused", "attention_mask"),
    Rows(
        EDITED,
        "a call that begins with an empty one is a prompt, others are steps (`cache` since"
        " transformers 5.24)",
        "cache past_key_values",
    ),
    Rows(SAME, "and they tell where the prompt ends, if they ignore it", "labels"),
    Rows(
        SAME,
        "handed to the base model",
        "batch_num_images decoder_attention_mask decoder_input_ids image_grid_thw image_sizes"
        " image_sizes_videos interpolate_pos_encoding kwargs logits_to_keep mm_encoder_outputs"
        " mm_token_type_ids pixel_attention_mask pixel_values pixel_values_videos position_ids"
        " second_per_grid_ts token_type_ids use_cache video_grid_thw vision_aspect_ratio"
        " vision_feature_layer vision_feature_select_strategy rope_deltas cache_position"
        " output_attentions output_hidden_states return_dict",
    ),
)
"""Arguments of a call."""

OPTIONS = (
    Rows(EDITED, "the prompt, as token ids; the whole of it is prompt", "inputs"),
    Rows(
        EDITED,
        "called with the model that generates, whose calls are edited; one that calls another"
        " object is refused",
        "custom_generate",
    ),
    Rows(
        SAME,
        "may call any model, edited or not: that call answers as it does alone",
        "logits_processor stopping_criteria prefix_allowed_tokens_fn streamer",
    ),
    Rows(
        SAME,
        "drafts may be of any model that is not edited: edited forwards check them",
        "assistant_model assistant_confidence_threshold assistant_early_exit"
        " assistant_ensemble_weight assistant_lookbehind is_assistant max_matching_ngram_size"
        " num_assistant_tokens num_assistant_tokens_schedule prompt_lookup_num_tokens"
        " speculation_type target_lookbehind use_mtp",
    ),
    Rows(
        SAME,
        "how caches are kept, and whether steps are compiled: the prompt runs as it is written",
        "cache_config cache_implementation compile_config disable_compile low_memory max_cache_len"
        " use_cache continuous_batching_config",
    ),
    Rows(
        SAME,
        "choose among edited scores, or say what is returned",
        "generation_config synced_gpus kwargs bad_words_ids begin_suppress_tokens bos_token_id"
        " constraints decoder_start_token_id diversity_penalty do_sample dola_layers early_stopping"
        " encoder_no_repeat_ngram_size encoder_repetition_penalty eos_token_id epsilon_cutoff"
        " eta_cutoff exponential_decay_length_penalty force_words_ids forced_bos_token_id"
        " forced_eos_token_id length_penalty max_length max_new_tokens max_time min_length"
        " min_new_tokens min_p no_repeat_ngram_size num_beam_groups num_beams num_return_sequences"
        " output_attentions output_hidden_states output_logits output_scores pad_token_id"
        " penalty_alpha remove_invalid_values renormalize_logits repetition_penalty"
        " return_dict_in_generate sequence_bias stop_strings suppress_tokens temperature top_h"
        " top_k top_p transformers_version typical_p watermarking_config",
    ),
    Rows(
        REFUSED,
        "they belong to guidance_scale",
        "negative_prompt_ids negative_prompt_attention_mask",
    ),
    *(Rows(REFUSED, reason, name) for name, (_, reason) in REFUSED_OPTIONS.items()),
)
"""Arguments of `generate`, and what its configuration holds."""

_HEAD = """# What an edited model does with what you ask of it

An `EditedModel` stands beside the model that it edits, and has its methods and attributes. Each of
them is here: *edited* (the answer holds the edits), *as the base model* (edits cannot matter to
it), *unedited part* (you get a piece of the base model), *changes the base model* (which all edited
models on it share) or *refused* (mostly with a `NotEditedError` that says what to do instead). A
test compares these tables with transformers 5.24, so that nothing new is passed on unseen.

A model without edits, `editor.edited([])`, refuses nothing: it is the base model.
"""

_TAIL = """
## Compiled models

A base model that `torch.compile` has made code of (`model.compile()`,
`model.forward = torch.compile(...)`, `torch.compile(model)`, or one of its parts or layers) runs as
it is written wherever an edit may apply, since compiled code does not see edits; one warning says
so. Decode steps behind a prompt that no edit concerns, and the base model itself, run compiled as
ever (with `answer_tokens: false` all decode steps do); while an edited forward runs, other threads
run uncompiled too. If what calls the edited model is compiled as well, that is a
`BackboneError`.

## Rows of a cache

Which edit a row of a prompt uses is remembered by its place. Who decodes by hand may repeat each
row in place (`batch_repeat_interleave`), but must not put rows into another order
(`reorder_cache([1, 0])`, `batch_select_indices`): as many rows in another order are not noticed,
and an edit would then change the answer to another prompt, and miss its own. Give the whole prompt
anew in the new order, or call `generate`, whose beam search changes the order among the rows of one
prompt alone. Fewer rows, or a number that is no multiple of the prompt's, are a
`ChunkedPrefillError`.

## Calls while it generates

Whatever is called while an edited model generates (by a streamer, a logits processor, a stopping
criterion, another thread) answers as it does alone: the base model unedited, an edited model with
its own edits. `generate` runs on a stand-in for the model, whose calls are its own. A `generate`
that somebody has put into the model, and that calls another object, is a `BackboneError`.
"""


def page() -> str:
    """Return the page as Markdown."""
    tables = (
        ("Methods and attributes", METHODS),
        ("Arguments of a call", ARGUMENTS),
        ("What a call and `generate` return", FIELDS),
        ("Arguments of `generate`, and its configuration", OPTIONS),
    )
    parts = [_HEAD]
    for title, table in tables:
        parts.append(f"\n## {title}\n\n| | what holds | names |\n|---|---|---|\n")
        for rows in table:
            names = ", ".join(f"`{name}`" for name in rows)
            parts.append(f"| {rows.kind} | {rows.says} | {names} |\n")
    return "".join(parts) + _TAIL


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(page(), encoding="utf-8")

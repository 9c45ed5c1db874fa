"""Short names for the checks of suites/inference, so that the catalogue can be read; a test proves that each exists."""

from __future__ import annotations

# test_answers
FACT = "test_chat_answer_knows_a_fact"
QUESTION = "test_answers_depend_on_the_question"
NAMES = "test_answer_names_its_model_and_object"
COMPLETION = "test_completion_continues_its_prompt"
# test_conversation
TURNS = "test_every_turn_reaches_the_model"
GROWING = "test_growing_conversation_is_counted_and_seen_whole"
# test_errors
UNKNOWN_MODEL = "test_unknown_model_is_refused"
BAD_PATH = "test_unknown_path_or_method_is_refused"
BAD_JSON = "test_body_that_is_not_json_is_refused"
BAD_FIELD = "test_invalid_field_is_refused_by_name"
BAD_STRUCTURE = "test_invalid_structure_is_refused"
ODD = "test_odd_request_causes_no_server_error"
OVER_LONG = "test_prompt_over_the_context_length_is_refused"
RECOVERS = "test_server_answers_after_refusing"
OWN_FIELDS = "test_fields_of_vllm_itself_reach_the_engine"
# test_forwarding
PROMPT_UNCHANGED = "test_prompt_reaches_the_engine_unchanged"
EVERY_STOP = "test_every_stop_text_counts"
SAMPLED_APART = "test_identical_requests_are_sampled_apart"
SERVED_ONCE = "test_request_is_served_once"
PROMPT_SCORES_AGAIN = "test_prompt_logprobs_are_the_same_again"
STOP_TOKEN_STREAMED = "test_stop_token_ends_the_stream_too"
# test_isolation
AT_ONCE = "test_concurrent_answers_are_not_mixed_up"
PARAMETERS = "test_answer_belongs_to_its_parameters"
ONE_ID = "test_requests_with_one_id_are_kept_apart"
CACHED = "test_cached_prefix_changes_no_answer"
CACHE_HIT = "test_enabled_prefix_cache_is_hit"
ABANDONED = "test_abandoned_requests_leave_no_trace"
LEAVES_EARLY = "test_client_that_leaves_before_its_answer_frees_its_slot"
ALL_MOVE = "test_concurrent_streams_all_progress"
# test_limits
MAX_TOKENS = "test_max_tokens_is_honoured"
SAYS_LENGTH = "test_answer_cut_by_its_limit_has_finish_reason_length"
SAYS_STOP = "test_answer_that_ends_by_itself_has_finish_reason_stop"
STOP = "test_answer_ends_before_the_stop_text"
STOP_ACROSS = "test_stop_text_is_found_across_tokens"
STOP_BYTES = "test_stop_text_of_many_bytes_is_found"
STOP_TOKEN = "test_stop_token_ends_the_answer"
CONTEXT = "test_the_whole_context_can_be_used"
# test_logprobs
LOGPROBS = "test_chat_logprobs_are_consistent"
LOGPROBS_STREAMED = "test_streamed_logprobs_equal_plain_logprobs"
LOGPROBS_COMPLETION = "test_completion_logprobs_are_consistent"
LOGPROBS_UNASKED = "test_logprobs_come_only_when_requested"
OFFSETS = "test_text_offsets_follow_the_text"
# test_models
LISTED = "test_served_model_is_listed"
DECLARED = "test_context_length_is_the_declared_one"
# test_parameters
EVERYWHERE = "test_parameters_count_in_every_way"
BATCH = "test_prompts_of_one_request_are_answered_in_order"
# test_properties
ANY_REQUEST = "test_any_request_gets_what_it_asks_for"
ANY_TEXT = "test_any_text_is_completed_by_its_own_tokens"
# test_quality
GOLDEN = "test_golden_answers_equal_the_recorded_ones"
PERPLEXITY = "test_perplexity_of_fixed_texts_equals_the_recorded_one"
TOKEN_SCORES = "test_scores_of_fixed_texts_equal_the_recorded_ones_token_by_token"
QUANTISED = "test_the_quantised_model_agrees_with_the_full_one"
# test_relations
STREAM_IS_PLAIN = "test_stream_equals_plain"
ANY_WAY = "test_way_of_asking_changes_nothing"
AMONG_OTHERS = "test_answer_among_others_equals_answer_alone"
AFTER_FAILURES = "test_answer_after_refused_and_abandoned_requests_equals_answer_before"
EACH_OF_N = "test_each_of_n_answers_equals_the_answer_alone"
IRRELEVANT = "test_irrelevant_feature_changes_nothing"
STOP_CUTS = "test_stop_text_cuts_the_answer_where_it_begins"
DEFAULTS = "test_explicit_default_equals_absent_parameter"
ABSENT_LIMIT = "test_absent_limit_is_not_a_small_limit"
NEW_PROMPT = "test_usage_of_a_new_prompt_is_the_sum_of_its_parts"
# test_sampling
GREEDY_AGAIN = "test_temperature_0_repeats_its_answer"
GREEDY_BEST = "test_temperature_0_selects_the_likeliest_token"
DRAWS = "test_high_temperature_samples"
SEED = "test_seed_repeats_the_sample"
FILTER = "test_filter_that_leaves_one_token_is_greedy"
N = "test_n_returns_that_many_choices"
N_STREAMED = "test_streamed_choices_are_kept_apart"
MIN_TOKENS = "test_min_tokens_prolongs_the_answer"
BIAS = "test_bias_forbids_and_forces_tokens"
PENALTY = "test_repetition_penalties_are_applied"
# test_security
KEY_SECRET = "test_key_is_never_repeated"
PROMPTS_PRIVATE = "test_prompt_is_never_repeated_to_another_client"
OTHER_ORIGINS = "test_pages_of_other_origins_get_no_credentials"
OPEN_PATHS = "test_administration_needs_a_key"
# test_service
WELL = "test_health_and_version_are_reported"
TYPES = "test_responses_have_their_content_type"
CREATED = "test_created_is_the_time_of_the_answer"
IDS = "test_no_two_answers_share_an_id"
METRICS = "test_metrics_count_what_is_served"
ENGINE_ANSWERS = "test_engine_answers"
KEY = "test_request_without_the_key_is_refused"
CONNECTION = "test_connection_is_kept_for_the_next_request"
NEW_CONNECTION = "test_every_new_connection_is_answered"
# test_slow_lanes
SLOW_STREAM = "test_long_stream_arrives_whole"
SLOW_ANSWER = "test_long_answer_arrives_whole"
SLOW_READER = "test_slow_reader_gets_everything"
SLOW_IDLE = "test_idle_connection_is_usable"
SLOW_FIRST = "test_request_after_a_pause_is_as_fast_as_others"
# test_streaming
STREAM_EQUAL = "test_chat_stream_text_equals_plain_answer"
STREAM_EQUAL_COMPLETION = "test_completion_stream_text_equals_plain_answer"
ARRIVES = "test_stream_arrives_incrementally"
DONE = "test_stream_ends_with_done"
ONE_PIECE = "test_chunks_of_a_stream_are_consistent"
STREAM_USAGE = "test_stream_carries_usage_when_requested"
CONTINUOUS = "test_continuous_usage_grows_with_the_stream"
FRAMED = "test_stream_is_framed_as_events"
CHARACTERS = "test_characters_are_never_cut"
FREES_SLOT = "test_client_that_disconnects_frees_its_slot"
# test_structure
SCHEMA = "test_schema_constraint_yields_json_of_that_schema"
EXPRESSION = "test_regex_constraint_yields_a_full_match"
CHOICE = "test_choice_constraint_yields_exactly_one_choice"
TOOL_REQUESTED = "test_requested_tool_call_comes_and_is_valid"
TOOL_AUTO = "test_automatic_tool_call_is_parsed"
TOOL_NONE = "test_tool_choice_none_yields_no_tool_call"
TOOL_RESULT = "test_tool_result_reaches_the_model"
# test_tokenizer
SURVIVES = "test_text_survives_the_tokenizer"
ENGINES_TOKENS = "test_tokenizer_endpoint_equals_the_engines_tokenizer"
TEMPLATE = "test_chat_template_renders_every_turn"
RENDERED = "test_engine_sees_the_conversation_as_rendered"
# test_tools
TOOL_EMPTY = "test_tool_without_parameters_gets_an_empty_object"
TOOL_PARALLEL = "test_parallel_tool_calls_can_be_switched_off"
TOOL_CUT = "test_tool_call_cut_by_its_limit_has_finish_reason_length"
TOOL_CHARACTERS = "test_tool_arguments_keep_their_characters"
FORMS = "test_every_form_of_structure_is_kept"
# test_transport
ON_THE_WIRE = "test_http_variant_changes_nothing"
LARGE_BODY = "test_large_body_is_read_whole"
LARGE_ANSWER = "test_large_answer_arrives_whole"
LARGE_EVENT = "test_large_event_arrives_whole"
# test_usage
PROMPT_CHAT = "test_prompt_tokens_of_a_chat_equal_the_tokenizers_count"
PROMPT_COMPLETION = "test_prompt_tokens_of_a_completion_equal_the_tokenizers_count"
LONG_CONVERSATION = "test_long_conversation_is_counted_whole"
COMPLETION_COUNT = "test_completion_tokens_equal_the_tokens_generated"

#: The checks that ask for many features or compare whole answers, so that any defect may break them.
relations = frozenset(
    (
        STREAM_IS_PLAIN,
        ANY_WAY,
        AMONG_OTHERS,
        AFTER_FAILURES,
        EACH_OF_N,
        IRRELEVANT,
        STOP_CUTS,
        DEFAULTS,
        ABSENT_LIMIT,
        NEW_PROMPT,
        EVERYWHERE,
        BATCH,
        FORMS,
        TOOL_EMPTY,
        TOOL_PARALLEL,
        TOOL_CUT,
        TOOL_CHARACTERS,
        CONTINUOUS,
        OFFSETS,
        STOP_BYTES,
        LONG_CONVERSATION,
        # Made for gateways, of which each has defects of its own: on the way to an engine with one, they fail with it.
        EVERY_STOP,
        LARGE_ANSWER,
        LARGE_BODY,
        LARGE_EVENT,
        ON_THE_WIRE,
        PROMPT_UNCHANGED,
        SAMPLED_APART,
        STOP_TOKEN_STREAMED,
        TOKEN_SCORES,
        ODD,
        LEAVES_EARLY,
        OWN_FIELDS,
        ONE_ID,
    )
)

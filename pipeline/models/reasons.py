"""Why a row has no tokens: every reason there is."""

from typing import Final

TEMPLATE_ERROR: Final = "template_error"  # the template refuses the turns or fails on them
TEMPLATE_TIMEOUT: Final = "template_timeout"
TEMPLATE_OUTPUT_TOO_LONG: Final = "template_output_too_long"
TOKENIZER_ERROR: Final = "tokenizer_error"
PROMPT_TOO_LONG: Final = "prompt_too_long"
EMPTY: Final = "empty_after_truncation"
IDENTICAL: Final = "identical_after_truncation"
BOUNDARY_MISMATCH: Final = "boundary_mismatch"  # of the paper preset

"""What the forkserver computes once and every process of a test would compute again.

transformers compiles a thousand regular expressions when the first model of a process is loaded.
"""

from transformers.conversion_mapping import get_checkpoint_conversion_mapping

get_checkpoint_conversion_mapping("qwen3")

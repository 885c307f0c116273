"""The largest numbers that settings take, by what breaks beyond them. Every number of a config has
a lower and an upper bound: a wrong digit is an error of the config, not a crash of hours later.
"""

# C code and file formats hold counts in 32 bits. As a cadence it means never.
COUNT = 2**31 - 1

# Seconds: system calls wait for milliseconds in 32 bits, 24.8 days. The watchdog, the pipes to a
# reward's process and the rendezvous would raise OverflowError in their threads.
WAIT = 24 * 86_400

# The largest magnitude of a coefficient: float32 ends at 3.4e38, and a loss multiplies several.
NUMBER = 1e30

# Divisors: the smallest normal float32 is 1.2e-38, and their squares occur.
SMALLEST = 1e-18

# Threads or processes that are started at once: larger than any node, smaller than what ends the
# process by its stacks.
AT_ONCE = 1024

# Tokens of one row: positions are computed in float32, which counts to 16.7 million.
TOKENS = 2**24

# Every rank holds number, id and reward of every sample of an iteration.
SAMPLES = 10_000_000

# Repetitions of the same work on the same rows or prompts.
REPEATS = 10_000

# Pixels of a side, or the rank of a matrix: tensors have its square.
SIDE = 16_384

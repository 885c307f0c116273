"""The command `prepare`: published data sets → rows and clips for training.

avqa      AVQA's rows and videos → clips in a few tar shards, `train.jsonl`
mmau      MMAU test-mini's rows and audio → `mmau.jsonl`, checked, its revision stamped
published_sets  published sets of prompts for pictures → prompt files
sources   the file that has the sound of a video
extract   one file → FLAC bytes, in a process of a pool
pool      tasks to processes, results in order; a process that dies costs one clip
record    skipped.jsonl, report.json, and the lines on the terminal
shards    FLAC bytes → tar shards and a journal that survive a kill
"""

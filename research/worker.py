"""One process that runs jobs (files of Python) in order: the imports are paid once."""

import glob, os, sys, time, traceback, contextlib

sys.path.insert(0, "research")
import torch
import lab, rl
from lab import *
import transformers, peft

transformers.utils.logging.disable_progress_bar()
print("ready", time.process_time(), flush=True)
while not os.path.exists("runs/lab/stop"):
    jobs = sorted(glob.glob("runs/lab/jobs/*.py"))
    if not jobs:
        time.sleep(2)
        continue
    job = jobs[0]
    name = os.path.basename(job)[:-3]
    text = open(job).read()
    os.rename(job, f"runs/lab/done_{name}.py")
    with open(f"runs/lab/{name}.log", "w", buffering=1) as out, contextlib.redirect_stdout(out):
        t = time.process_time()
        try:
            exec(compile(text, name, "exec"), globals())
        except BaseException:
            traceback.print_exc(file=out)
        print("end", round(time.process_time() - t, 1))

"""Train from Python, and look at what came out.

    python docs/examples/train_from_python.py
    torchrun --standalone --nproc-per-node 2 docs/examples/train_from_python.py

The same script resumes the run after a kill, on any number of processes.
"""

import adrpo_scale

CONFIG = "configs/demo/image_adrpo.toml"


def main(config=CONFIG, run_dir="runs/from-python", overrides=("iterations=20",)):
    run = adrpo_scale.train(config, run_dir=run_dir, overrides=overrides)
    rewards = [row["reward"] for row in run.metrics()]
    print(f"reward {rewards[0]:.2f} → {rewards[-1]:.2f}, checkpoints {[*run.checkpoints()]}")
    return run


if __name__ == "__main__":
    main()

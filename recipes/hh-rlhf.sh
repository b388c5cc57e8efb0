#!/usr/bin/env bash
# From preferences to a policy: a supervised start, a reward model, then RLOO, GRPO and PPO against it, and how often
# their answers beat the start's.  Further arguments are overrides for all three: recipes/hh-rlhf.sh training.steps=20
set -euo pipefail
cd "$(dirname "$0")/.."

gro train recipes/hh-sft.yaml
gro reward-model recipes/hh-reward-model.yaml
gro train recipes/hh-rloo.yaml "$@"
gro train recipes/hh-rloo.yaml run=runs/hh-grpo 'algorithm={name: grpo, beta: 0.04}' "$@"
gro train recipes/hh-rloo.yaml run=runs/hh-ppo 'algorithm={name: ppo, kl: 0.05}' \
  'critic={path: runs/hh-reward-model, warmup_steps: 5, optimizer: {learning_rate: 5.0e-5}}' \
  training.epochs=2 training.minibatches=2 "$@"
for algorithm in rloo grpo ppo; do
  gro eval "runs/hh-$algorithm" --against runs/hh-sft --output "runs/hh-$algorithm/eval.json"
done

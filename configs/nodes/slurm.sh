#!/bin/bash
# sbatch slurm.sh; after a time limit the same command goes on from the last checkpoint.
#SBATCH --job-name=selfaug
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=12:00:00
#SBATCH --signal=TERM@300
set -euo pipefail
export HOST=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
resume=""
if ls /data/runs/qwen2.5-7b/checkpoints/checkpoint-*/selfaug_checkpoint.json > /dev/null 2>&1; then
  resume="--resume_from_checkpoint true"
fi
# The signal goes to `selfaug train`, which saves a checkpoint and ends.
srun bash -c "exec selfaug train --config settings.yaml --accelerate_config accelerate.yaml \
  --machine_rank \$SLURM_NODEID --main_process_ip $HOST $resume"

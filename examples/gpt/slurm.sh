#!/usr/bin/env bash
#SBATCH --job-name=megacore
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --signal=B:TERM@300
# Runs one of the scripts beside this one as a Slurm job and resumes by itself after a requeue:
#
#   sbatch --nodes 64 --time 24:00:00 --requeue examples/gpt/slurm.sh 145b.sh \
#       --save /checkpoints/145b --load /checkpoints/145b --save-interval 500 --exit-signal-handler
#
# Slurm sends SIGTERM five minutes before the end; with --exit-signal-handler the run then saves.
set -euo pipefail

# Slurm runs a copy of this file, so the folder is the one that sbatch was called from.
folder="${MEGACORE_EXAMPLES:-${SLURM_SUBMIT_DIR}/examples/gpt}"
script="$1"
shift
"${folder}/${script}" "$@" &
job=$!
trap 'kill -TERM "${job}"' TERM
# The first wait ends with the signal, the second with the run.
wait "${job}" || wait "${job}"

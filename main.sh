#!/usr/bin/env bash
# Many runs, one after the other or side by side: tasks x settings x methods x seeds, or a file. Finished runs are passed
# over, interrupted ones go on, those under way elsewhere are waited for, base steps that would be the same are trained
# once; what fails is listed at the end (exit 1).
#
#   bash main.sh                                           # every task below, on every GPU
#   bash main.sh --dry-run                                 # print the commands instead (or DRY_RUN=1)
#   NUM_GPUS=2 VOC_TASKS="15-1 10-1" ADE_TASKS= METHODS="mbs finetune" SEEDS="0 1 2" bash main.sh
#   bash main.sh configs/ablation/voc.yaml                 # a sweep file; tools/sweep.py says what it may hold
#   NUM_GPUS=2 bash main.sh configs/ablation/voc.yaml --jobs auto            # side by side, on 2 GPUs each
#   NUM_GPUS=4 bash main.sh configs/ablation/voc.yaml --slurm jobs           # as jobs of Slurm: bash jobs/submit.sh
#
# From the environment, for a sweep file too:
#   NUM_GPUS     processes of a run, one a GPU       (default: the GPUs that PyTorch sees, cut among JOBS; on a CPU 1)
#   JOBS         runs at a time, or auto             (1; --jobs does the same)
#   PORT         rendezvous port                     (a free one)
#   SEEDS        seeds of every run                  (the config's, or those of the file)
#   BASE         'seed': every seed trains a base step of its own      (one for all seeds)
#   EXTRA        further arguments of main.py, cut as a shell does (e.g. EXTRA="--set train.batch_size=8")
#   SUFFIX       end of every log name               (e.g. SUFFIX=_small: other arguments want other names)
#   KEEP_GOING   0: stop at a failed run             (1)
# Without a file (the lists may be empty: none):
#   VOC_TASKS    tasks on Pascal VOC 2012            (19-1 15-5 15-1 10-1)
#   ADE_TASKS    tasks on ADE20K                     (100-50 100-10 50-50)
#   SETTINGS     settings of VOC; ADE20K: overlap    (overlap disjoint)
#   METHODS      methods of every task               (METHOD, or mbs)
#   VOC_CONFIG, ADE_CONFIG   config files            (./configs/voc.yaml ./configs/ade20k.yaml)
set -euo pipefail
arguments=()
for argument in "$@"; do
    if [[ -f $argument ]]; then argument=$(realpath "$argument"); fi
    arguments+=("$argument")
done
cd "$(dirname "$0")"
exec "${PYTHON:-python}" -m tools.sweep ${arguments[@]+"${arguments[@]}"}

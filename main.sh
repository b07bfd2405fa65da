#!/usr/bin/env bash
# Sweep over tasks and settings of VOC and ADE20K, one run after the other; a rerun continues where it stopped.
#
#   bash main.sh                                           # every task below, on every GPU
#   NUM_GPUS=2 VOC_TASKS="15-1 10-1" ADE_TASKS= bash main.sh
#
# From the environment (the lists may be empty: none):
#   NUM_GPUS     processes to start, one a GPU       (default: the GPUs that PyTorch sees, or 1 process on the CPU)
#   PORT         rendezvous port                     (29500)
#   VOC_TASKS    tasks on Pascal VOC 2012            (19-1 15-5 15-1 10-1)
#   ADE_TASKS    tasks on ADE20K                     (100-50 100-10 50-50)
#   SETTINGS     settings of VOC; ADE20K: overlap    (overlap disjoint)
#   METHOD       method of every run                 (mbs)
#   VOC_CONFIG, ADE_CONFIG   config files            (./configs/voc.yaml ./configs/ade20k.yaml)
#   EXTRA        further arguments of main.py, cut at spaces (e.g. EXTRA="--set seed=1")
#   SUFFIX       end of every log name               (e.g. SUFFIX=_seed1: other arguments want other names)
#   KEEP_GOING   1: go on after a failed run         (0)
set -uo pipefail
cd "$(dirname "$0")"

PYTHON=${PYTHON:-python}
NUM_GPUS=${NUM_GPUS:-$("$PYTHON" -c "import torch; print(max(1, torch.cuda.device_count()))")}
PORT=${PORT:-29500}
VOC_TASKS=${VOC_TASKS-19-1 15-5 15-1 10-1}
ADE_TASKS=${ADE_TASKS-100-50 100-10 50-50}
SETTINGS=${SETTINGS-overlap disjoint}
METHOD=${METHOD:-mbs}
VOC_CONFIG=${VOC_CONFIG:-./configs/voc.yaml}
ADE_CONFIG=${ADE_CONFIG:-./configs/ade20k.yaml}
read -r -a extra <<< "${EXTRA-}"
failed=()

run() { # config task setting log-name
    local name=$4${SUFFIX-}
    echo "== $name"
    # Without the --, argparse of Python 3.11 takes --log for one of torchrun's own options.
    "$PYTHON" -m torch.distributed.run --nproc_per_node="$NUM_GPUS" --master_port="$PORT" -- main.py \
        --config "$1" --log "$name" \
        --set "task='$2'" --set "setting=$3" --set "method=$METHOD" ${extra[@]+"${extra[@]}"} && return
    failed+=("$name")
    if [[ ${KEEP_GOING-0} != 1 ]]; then
        echo "main.sh: $name failed; mend it and rerun, or set KEEP_GOING=1" >&2
        exit 1
    fi
}

for setting in $SETTINGS; do
    for task in $VOC_TASKS; do
        run "$VOC_CONFIG" "$task" "$setting" "voc_${task}_${setting}_${METHOD}"
    done
done
for task in $ADE_TASKS; do
    run "$ADE_CONFIG" "$task" overlap "ade_${task}_overlap_${METHOD}"
done

if ((${#failed[@]})); then
    echo "main.sh: failed: ${failed[*]}" >&2
    exit 1
fi

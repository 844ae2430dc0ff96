# Sourced by the recipes next to it, each of which takes three folders:
#     bash examples/train_sr/recipes/RECIPE.sh IMAGES VAL RUNS
# images to train on, images to score on, and where the runs go. A finished run is skipped, an unfinished one goes on.
set -euo pipefail
if (($# != 3)); then
    echo "usage: bash $0 IMAGES VAL RUNS" >&2
    exit 2
fi
images=$1 val=$2 runs=$3

run() { # NAME OPTIONS...
    if [[ ! -e $runs/$1/result.json ]]; then
        python -m examples.train_sr train --train "$images" --val "$val" --batch 16 --patch 32 --out "$runs/$1" "${@:2}"
    fi
}

summary() { # NAME...
    python -m examples.train_sr summary "${@/#/$runs/}"
}

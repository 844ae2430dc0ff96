# The weights in reparam/models/weights: trained, then trained on with frozen statistics, which costs what plain convolutions cost.
source "$(dirname "$0")/run.sh"

more=(--warmup 200 --freeze-at 0)
small() { # NAME STEPS RATE OPTIONS...
    run "$1-begun" --model "$1" --steps "$2" --lr "$3" "${@:4}"
    run "$1" --start "$runs/$1-begun/train.safetensors" --steps 10000 --lr 4e-3 "${more[@]}"
}

small repsr_m4c16_x2_y 4000 1.6e-2 --warmup 200
small repsr_m4c16_x2 20000 4e-3
small repsr_m4c16_x3 20000 4e-3
small repsr_m4c16_x4 8000 8e-3

# The larger networks are fused in between, and their convolutions swapped for blocks again.
for name in repsr_m6c32_x2 repsr_m6c32_x4; do
    run "$name-begun" --model $name --steps 4000 --lr 4e-3 --freeze-at 0.2
    run "$name-middle" --start "$runs/$name-begun/fused.safetensors" --swap RepSRBlock --steps 8000 --lr 4e-3 --freeze-at 0
    run $name --start "$runs/$name-middle/fused.safetensors" --swap RepSRBlock --steps 5000 --lr 2e-3 "${more[@]}"
done
summary repsr_m4c16_x{2,3,4} repsr_m4c16_x2_y repsr_m6c32_x{2,4}

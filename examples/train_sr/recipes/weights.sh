# The weights in reparam/models/weights. Most were trained on with frozen statistics, which costs what plain convolutions cost.
source "$(dirname "$0")/run.sh"

more=(--warmup 200 --freeze-at 0)
run repsr_m4c16_x2-begun --model repsr_m4c16_x2 --steps 20000 --lr 4e-3
run repsr_m4c16_x2_y-begun --model repsr_m4c16_x2_y --steps 4000 --lr 1.6e-2 --warmup 200
run repsr_m4c16_x3-begun --model repsr_m4c16_x3 --steps 20000 --lr 4e-3
run repsr_m4c16_x4-begun --model repsr_m4c16_x4 --steps 8000 --lr 8e-3
for name in repsr_m4c16_x{2,2_y,3,4}; do
    run $name --start "$runs/$name-begun/train.safetensors" --steps 10000 --lr 4e-3 "${more[@]}"
done

# The larger networks are fused in between, and their convolutions swapped for blocks again.
for name in repsr_m6c32_x2 repsr_m6c32_x4; do
    run "$name-begun" --model $name --steps 4000 --lr 4e-3 --freeze-at 0.2
    run "$name-middle" --start "$runs/$name-begun/fused.safetensors" --swap RepSRBlock --steps 8000 --lr 4e-3 --freeze-at 0
    run $name --start "$runs/$name-middle/fused.safetensors" --swap RepSRBlock --steps 5000 --lr 2e-3 "${more[@]}"
done

from() { # NAME OTHER STEPS RATE: takes all layers but the last from the other network, which has scale 2
    run "$1" --model "${1/repsr/plain}" --body "$runs/$2/fused.safetensors" --swap RepSRBlock --steps "$3" --lr "$4" "${more[@]}"
}
from repsr_m4c16_x3_y repsr_m4c16_x2_y 10000 2e-3
from repsr_m4c16_x4_y repsr_m4c16_x2_y 10000 4e-3
from repsr_m6c32_x3 repsr_m6c32_x2 5000 4e-3
from repsr_m6c32_x2_y repsr_m6c32_x2 8000 2e-3
from repsr_m6c32_x3_y repsr_m6c32_x2_y 5000 2e-3
from repsr_m6c32_x4_y repsr_m6c32_x2 8000 2e-3
summary repsr_m{4c16,6c32}_x{2,3,4}{,_y}

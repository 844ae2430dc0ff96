# The weights in reparam/models/weights. The larger networks are fused on the way, and their convolutions swapped for blocks again.
source "$(dirname "$0")/run.sh"
run repsr_m4c16_x2 --model repsr_m4c16_x2 --steps 20000 --lr 4e-3
run repsr_m4c16_x3 --model repsr_m4c16_x3 --steps 20000 --lr 4e-3
run repsr_m4c16_x4 --model repsr_m4c16_x4 --steps 8000 --lr 8e-3
run repsr_m4c16_x2_y --model repsr_m4c16_x2_y --steps 5000 --lr 8e-3
for name in repsr_m6c32_x2 repsr_m6c32_x4; do
    run "$name-begun" --model $name --steps 4000 --lr 4e-3 --freeze-at 0.2
    run $name --start "$runs/$name-begun/fused.safetensors" --swap RepSRBlock --steps 8000 --lr 4e-3 --freeze-at 0
done
summary repsr_m4c16_x{2,3,4} repsr_m4c16_x2_y repsr_m6c32_x{2,4}

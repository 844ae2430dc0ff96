# What the start, the warm-up and the freezing do; the runs that these are compared with are in search.sh.
source "$(dirname "$0")/run.sh"

four=(--steps 2000) sixteen=(--steps 1000)
run plain_m4 --model plain_m4c16_x2_y "${four[@]}" --lr 4e-3
run ecbsr_m4 --model ecbsr_m4c16_x2_y "${four[@]}" --lr 2e-3
run repsr_m4 --model repsr_m4c16_x2_y "${four[@]}" --lr 8e-3
run plain_m16 --model plain_m16c16_x2_y "${sixteen[@]}" --lr 2e-3
run ecbsr_m16 --model ecbsr_m16c16_x2_y "${sixteen[@]}" --lr 1e-3
summary {plain,ecbsr,repsr}_m4
summary {plain,ecbsr}_m16

repsr=(--model repsr_m4c16_x2_y "${four[@]}" --lr 1.6e-2 --warmup 200)
run large "${repsr[@]}" --options '{"bn_weight": 1, "gain": 1}'
for share in 0.1 0.5 1; do
    run "frozen_at_$share" "${repsr[@]}" --freeze-at "$share"
done
summary large frozen_at_{0.1,0.5,1}

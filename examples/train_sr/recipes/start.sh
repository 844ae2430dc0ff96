# What the start, the warm-up and the freezing do; the runs that these are compared with are in search.sh.
source "$(dirname "$0")/run.sh"

four=(--steps 2000) sixteen=(--model plain_m16c16_x2_y --steps 1000) thirty_two=(--model plain_m32c16_x2_y --steps 1000)
run plain_m4 --model plain_m4c16_x2_y "${four[@]}" --lr 4e-3
run ecbsr_m4 --model ecbsr_m4c16_x2_y "${four[@]}" --lr 2e-3
run repsr_m4 --model repsr_m4c16_x2_y "${four[@]}" --lr 8e-3
run plain_m16 "${sixteen[@]}" --lr 4e-3
run ecbsr_m16 --model ecbsr_m16c16_x2_y --steps 1000 --lr 2e-3
summary {plain,ecbsr,repsr}_m4
summary {plain,ecbsr}_m16

# Rows of He's length, sqrt(2 / (1 + 0.25^2)) = 1.372, and of length 1, in place of those of the rule.
run he_m4 --model plain_m4c16_x2_y "${four[@]}" --warmup 200 --lr 8e-3 --gain 1.38
run he_m16 "${sixteen[@]}" --warmup 200 --lr 8e-3 --gain 1.1
run he_m32 "${thirty_two[@]}" --warmup 200 --lr 2e-3 --gain 1.05
run one_m16 "${sixteen[@]}" --warmup 200 --lr 4e-3 --gain 0.801
run one_m32 "${thirty_two[@]}" --warmup 200 --lr 2e-3 --gain 0.765
summary he_m{4,16,32}
summary one_m{16,32}

repsr=(--model repsr_m4c16_x2_y "${four[@]}" --lr 1.6e-2 --warmup 200)
run large "${repsr[@]}" --options '{"bn_weight": 1, "gain": 1}'
for share in 0.1 0.5 0.8 0.95 1; do
    run "frozen_at_$share" "${repsr[@]}" --freeze-at "$share"
done
summary large frozen_at_{0.1,0.5,0.8,0.95,1}
for share in 0.8 0.9 0.95 1; do
    run "constant_$share" "${repsr[@]}" --lr 4e-3 --schedule constant --ema 0 --freeze-at "$share"
done
summary constant_{0.8,0.9,0.95,1}
run never_m16 --model repsr_m16c16_x2_y --steps 1000 --warmup 200 --lr 8e-3 --freeze-at 1
summary never_m16

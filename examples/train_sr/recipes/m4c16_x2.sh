# Six ways to train M4C16 at scale 2 on luma, three seeds each.
source "$(dirname "$0")/run.sh"
for seed in 0 1 2; do
    run "plain$seed" --model plain_m4c16_x2_y --steps 4000 --seed $seed --lr 8e-3
    run "collapsible$seed" --model collapsiblesr_m4c16_x2_y --steps 4000 --seed $seed --lr 2e-3
    run "ecbsr$seed" --model ecbsr_m4c16_x2_y --steps 4000 --seed $seed --lr 2e-3 --gain 0.1
    run "repvgg$seed" --model repvggsr_m4c16_x2_y --steps 4000 --seed $seed --lr 8e-3 --gain 0.01
    run "never$seed" --model repsr_m4c16_x2_y --steps 4000 --seed $seed --lr 8e-3 --gain 0.3 --freeze-at 1
    run "repsr$seed" --model repsr_m4c16_x2_y --steps 4000 --seed $seed --lr 8e-3 --gain 0.3
done
summary {plain,collapsible,ecbsr,repvgg,never,repsr}{0,1,2}

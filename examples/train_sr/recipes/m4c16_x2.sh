# Five ways to train M4C16 at scale 2 on luma, two seeds each.
source "$(dirname "$0")/run.sh"

way() { # NAME MODEL RATE
    run "$1" --model "$2_m4c16_x2_y" --steps 4000 --warmup 200 --lr "$3" --seed "$seed"
}

for seed in 0 1; do
    way "plain$seed" plain 1.6e-2
    way "collapsible$seed" collapsiblesr 2e-3
    way "ecbsr$seed" ecbsr 4e-3
    way "repvgg$seed" repvggsr 1.6e-2
    way "repsr$seed" repsr 1.6e-2
done
summary {plain,collapsible,ecbsr,repvgg,repsr}{0,1}

for seed in 0 1; do
    way "plain$seed-8e-3" plain 8e-3
    way "ecbsr$seed-8e-3" ecbsr 8e-3
done
summary {plain,ecbsr}{0,1}-8e-3

# Networks whose first and last layer are plain, for the table of networks in 8 bits
ends=(--options '{"plain_ends": true}' --steps 4000 --warmup 200)
run repvgg_ends --model repvggsr_m4c16_x2_y "${ends[@]}" --lr 1.6e-2
run qarepvgg_ends-8e-3 --model qarepvggsr_m4c16_x2_y "${ends[@]}" --lr 8e-3
run qarepvgg_ends --model qarepvggsr_m4c16_x2_y "${ends[@]}" --lr 1.6e-2
summary repvgg_ends qarepvgg_ends{-8e-3,}

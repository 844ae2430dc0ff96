# A trained plain network, fine-tuned as it is and with its convolutions swapped for blocks, three seeds.
source "$(dirname "$0")/run.sh"
run base --model plain_m4c16_x2_y --steps 6000 --lr 2e-3
for seed in 1 2 3; do
    tune=(--start "$runs/base/train.safetensors" --steps 3000 --lr 1e-3 --seed $seed)
    run "plain$seed" "${tune[@]}"
    run "swapped$seed" "${tune[@]}" --swap RepSRBlock
done
summary plain{1,2,3} && summary swapped{1,2,3}

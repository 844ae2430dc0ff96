# PSNR against width: four convolutions of 16, 32 and 64 channels between the first and the last one, on luma; and scale 4.
source "$(dirname "$0")/run.sh"

of_width() { # CHANNELS, and pairs of a network and its learning rate
    local pair names=()
    for pair in "${@:2}"; do
        names+=("${pair%=*}_c$1_${pair#*=}")
        run "${names[-1]}" --model "${pair%=*}_m4c$1_x2_y" --steps 1000 --warmup 200 --lr "${pair#*=}"
    done
    summary "${names[@]}"
}

of_width 16 plain=8e-3 plain=1.6e-2 collapsiblesr=2e-3 ecbsr=4e-3 repvggsr=1.6e-2 repsr=1.6e-2
of_width 32 plain=4e-3 plain=8e-3 collapsiblesr=1e-3 collapsiblesr=2e-3 ecbsr=2e-3 ecbsr=4e-3 \
    repvggsr=8e-3 repvggsr=1.6e-2 repsr=8e-3
of_width 64 plain=1e-3 plain=2e-3 plain=4e-3 collapsiblesr=1e-3 collapsiblesr=2e-3 ecbsr=1e-3 \
    repvggsr=8e-3 repvggsr=1.6e-2 repsr=8e-3 repsr=1.6e-2

run repvggsr_c64_seed1 --model repvggsr_m4c64_x2_y --steps 1000 --warmup 200 --lr 1.6e-2 --seed 1
run repsr_c64_seed1 --model repsr_m4c64_x2_y --steps 1000 --warmup 200 --lr 8e-3 --seed 1
summary {repvggsr,repsr}_c64_seed1

names=()
for pair in plain=8e-3 plain=1.6e-2 collapsiblesr=1e-3 collapsiblesr=2e-3 ecbsr=4e-3 repvggsr=1.6e-2 repsr=1.6e-2; do
    names+=("${pair%=*}_x4_${pair#*=}")
    run "${names[-1]}" --model "${pair%=*}_m4c16_x4_y" --steps 2000 --warmup 200 --lr "${pair#*=}"
done
summary "${names[@]}"

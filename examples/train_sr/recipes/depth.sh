# PSNR against depth: 4, 16 and 32 convolutions of 16 channels between the first and the last one; scale 2 on luma.
source "$(dirname "$0")/run.sh"

at_depth() { # BLOCKS STEPS SEED, and pairs of a network and its learning rate
    local pair network names=()
    for pair in "${@:4}"; do
        network=${pair%=*}
        names+=("${network}_m$1_$2_seed$3")
        run "${names[-1]}" --model "${network%+id}_m$1c16_x2_y" --steps "$2" --warmup 200 --lr "${pair#*=}" --seed "$3" \
            --options "$([[ $network == *+id ]] && echo '{"identity": null}' || echo '{}')"
    done
    summary "${names[@]}"
}

at_depth 4 1000 0 plain=8e-3 collapsiblesr=2e-3 ecbsr=4e-3 ecbsr+id=4e-3 repvggsr=1.6e-2 repsr=1.6e-2
at_depth 16 1000 0 plain=8e-3 collapsiblesr=2e-3 ecbsr=2e-3 ecbsr+id=2e-3 repvggsr=1.6e-2 repsr=8e-3
at_depth 32 1000 0 plain=4e-3 collapsiblesr=1e-3 ecbsr+id=2e-3 repvggsr=1.6e-2 repsr=8e-3
at_depth 32 1000 1 plain=4e-3 collapsiblesr=1e-3 ecbsr+id=2e-3 repvggsr=1.6e-2 repsr=8e-3
run plain_m32_1000_slower --model plain_m32c16_x2_y --steps 1000 --warmup 200 --lr 2e-3 --seed 1
summary plain_m32_1000_slower
at_depth 16 2000 0 plain=8e-3 collapsiblesr=2e-3 ecbsr=2e-3 ecbsr+id=2e-3 repvggsr=1.6e-2 repsr=8e-3
at_depth 16 2000 1 plain=8e-3 collapsiblesr=2e-3 repvggsr=1.6e-2 repsr=8e-3

# EDSR with about as many multiply-adds as 16 blocks
for steps in 1000 2000; do
    run "edsr_$steps" --model edsr_m6c16_x2_y --steps $steps --warmup 200 --lr 8e-3
done
summary edsr_{1000,2000}

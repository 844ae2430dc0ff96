# The search of the learning rates, but for those of width.sh; images to score on are kept out of those to train on.
source "$(dirname "$0")/run.sh"

try() { # NETWORK BLOCKS STEPS RATE...
    local rate names=()
    for rate in "${@:4}"; do
        names+=("$1_m$2_$rate")
        run "${names[-1]}" --model "${1%+id}_m$2c16_x2_y" --steps "$3" --warmup 200 --lr "$rate" \
            --options "$([[ $1 == *+id ]] && echo '{"identity": null}' || echo '{}')"
    done
    summary "${names[@]}"
}

try plain 4 2000 8e-3 1.6e-2
try collapsiblesr 4 2000 1e-3 2e-3
try ecbsr 4 2000 4e-3 8e-3
try repvggsr 4 2000 8e-3 1.6e-2 3.2e-2
try repsr 4 2000 8e-3 1.6e-2 3.2e-2

try plain 16 1000 4e-3 8e-3
try collapsiblesr 16 1000 1e-3 2e-3 4e-3
try ecbsr 16 1000 2e-3
try ecbsr+id 16 1000 2e-3 4e-3
try repvggsr 16 1000 8e-3 1.6e-2
try repsr 16 1000 4e-3 8e-3

try plain 32 1000 2e-3 4e-3
try collapsiblesr 32 1000 5e-4 1e-3 2e-3
try ecbsr 32 1000 5e-4
try ecbsr+id 32 1000 5e-4 1e-3 2e-3
try repvggsr 32 1000 8e-3 1.6e-2
try repsr 32 1000 8e-3 1.6e-2

for rate in 1e-3 2e-3 4e-3 8e-3; do
    run "edsr_$rate" --model edsr_m6c16_x2_y --steps 1000 --warmup 200 --lr "$rate"
done
summary edsr_{1e-3,2e-3,4e-3,8e-3}

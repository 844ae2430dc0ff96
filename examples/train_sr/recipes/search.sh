# The search of the learning rate and of the start of every network, seed 0.
source "$(dirname "$0")/run.sh"

try() { # NETWORK STEPS RATExGAIN...
    local pair names=()
    for pair in "${@:3}"; do
        names+=("$1_$pair")
        run "$1_$pair" --model "$1" --steps "$2" --lr "${pair%x*}" --gain "${pair#*x}"
    done
    summary "${names[@]}"
}

try plain_m4c16_x2_y 4000 1e-3x1 2e-3x1 4e-3x1 8e-3x1 4e-3x0.3 4e-3x3
try ecbsr_m4c16_x2_y 4000 1e-3x1 2e-3x1 4e-3x1 2e-3x0.3 2e-3x0.1 4e-3x0.1 4e-3x0.3 2e-3x3
try collapsiblesr_m4c16_x2_y 4000 1e-3x1 2e-3x1 4e-3x1 2e-3x0.3 2e-3x3
try repvggsr_m4c16_x2_y 4000 2e-3x1 4e-3x1 8e-3x1 8e-3x0.3 8e-3x0.1 8e-3x0.03 8e-3x0.01
try repsr_m4c16_x2_y 4000 2e-3x1 4e-3x1 8e-3x1 4e-3x0.3 8e-3x0.3

try plain_m4c16_x4_y 4000 8e-3x1 4e-3x1
try collapsiblesr_m4c16_x4_y 4000 2e-3x1
try ecbsr_m4c16_x4_y 4000 2e-3x0.1 1e-3x0.3
try repvggsr_m4c16_x4_y 4000 8e-3x0.01 4e-3x0.01
try repsr_m4c16_x4_y 4000 8e-3x0.3 4e-3x0.3 4e-3x1 2e-3x0.3

try plain_m10c16_x2_y 1500 8e-3x1 4e-3x1 2e-3x1
try collapsiblesr_m10c16_x2_y 1500 1e-3x1
try ecbsr_m10c16_x2_y 1500 2e-3x0.1 1e-3x0.5 1e-3x1 5e-4x1
try repvggsr_m10c16_x2_y 1500 4e-3x0.01
try repsr_m10c16_x2_y 1500 8e-3x0.3 4e-3x0.3 8e-3x0.1

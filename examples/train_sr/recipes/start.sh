# Which part of a small start helps: all layers, the last one only, or all but the last one.
source "$(dirname "$0")/run.sh"

starts() { # NAME RATE GAIN
    local common=(--model "$1_m4c16_x2_y" --steps 2000 --lr "$2")
    run "$1_own" "${common[@]}"
    run "$1_last" "${common[@]}" --last-gain 0.01
    if [[ $3 != 1 ]]; then
        run "$1_all" "${common[@]}" --gain "$3"
        run "$1_others" "${common[@]}" --gain "$3" --last-gain "$(awk "BEGIN { print 1 / $3 }")"
        summary "$1_own" "$1_last" "$1_all" "$1_others"
    else
        summary "$1_own" "$1_last"
    fi
}

starts repvggsr 8e-3 0.01
starts ecbsr 2e-3 0.1
starts repsr 8e-3 1
starts plain 4e-3 1

# M4C16 at scale 4 on luma, one seed.
source "$(dirname "$0")/run.sh"
run plain --model plain_m4c16_x4_y --steps 4000 --lr 8e-3
run collapsible --model collapsiblesr_m4c16_x4_y --steps 4000 --lr 2e-3
run ecbsr --model ecbsr_m4c16_x4_y --steps 4000 --lr 2e-3 --gain 0.1
run repvgg --model repvggsr_m4c16_x4_y --steps 4000 --lr 4e-3 --gain 0.01
run repsr --model repsr_m4c16_x4_y --steps 4000 --lr 4e-3 --gain 0.3
summary plain collapsible ecbsr repvgg repsr

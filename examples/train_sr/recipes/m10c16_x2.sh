# M10C16 at scale 2 on luma, one seed.
source "$(dirname "$0")/run.sh"
run plain --model plain_m10c16_x2_y --steps 4000 --lr 2e-3
run collapsible --model collapsiblesr_m10c16_x2_y --steps 4000 --lr 1e-3
run ecbsr --model ecbsr_m10c16_x2_y --steps 4000 --lr 1e-3
run repvgg --model repvggsr_m10c16_x2_y --steps 4000 --lr 4e-3 --gain 0.01
run repsr --model repsr_m10c16_x2_y --steps 4000 --lr 8e-3 --gain 0.1
summary plain collapsible ecbsr repvgg repsr

#!/usr/bin/env bash
# Takes a language model to 3 bits, says what that cost, and lets it speak.
#
#   ./demo.sh            fresh Debian 12 as root: installs, builds, downloads a 98 MB model, runs
#
# A second run uses what is there: the build, the model, finished and unfinished runs in demo/.
set -euo pipefail
cd "$(dirname "$0")"
if [ $# != 0 ]; then sed -n '2,7s/^# \{0,1\}//p' "$0" >&2; exit 1; fi
. tools/setup.sh

SAMPLES=16 # sequences of 512 tokens, which the model writes itself: no data set is needed
SPEECH=(--tokens 40 --temperature 0.5 --seed 1)
PROMPT="Once upon a time, in a small village by the sea, there lived"
lpcd=build/bin/lpcd
model=.cache/models/$SMOLLM2_FILE

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }
[ -t 1 ] || say() { printf '\n%s\n' "$*"; }

# quantize_as NAME TITLE FLAGS...: a run in demo/NAME, gone on with where it stopped.
quantize_as() {
  local out=demo/$1 title=$2 status=0
  shift 2
  local command=("$lpcd" quantize "$model" --out "$out" --format gptq:3,g64 --samples "$SAMPLES" "$@")
  say "$title"
  echo "  ${command[*]}"
  if [ -f "$out/record.json" ]; then
    "${command[@]}" --resume --quiet >demo/log 2>&1 && echo "  (there already)" && return 0
  else
    : >demo/log
    "${command[@]}" --resume && return 0
  fi || status=$?
  if [ "$status" != 2 ] || [ ! -d "$out/.lpcd" ]; then
    cat demo/log >&2
    exit "$status"
  fi
  echo "  what is there was made with other settings: starting again"
  rm -rf "$out"
  "${command[@]}"
}

# evaluate_run NAME: demo/NAME.json, the run beside its original.
evaluate_run() {
  if [ "demo/$1.json" -nt "demo/$1/record.json" ] && [ "demo/$1.json" -nt demo/text.txt ]; then return 0; fi
  "$lpcd" eval "demo/$1" --reference "$model" --ppl demo/text.txt --max-tokens 16384 --json >"demo/$1.json.part"
  mv "demo/$1.json.part" "demo/$1.json"
}

install_packages build
if [ ! -f build/build.ninja ]; then
  say "Building a release"
  cmake --preset release -DLPCD_BUILD_TESTS=OFF >/dev/null
fi
cmake --build build --target lpcd_cli | tail -n 1
fetch_smollm2
mkdir -p demo
start=$SECONDS

say "The model"
"$lpcd" inspect "$model" | sed -n '1,4s/^/  /p'

quantize_as gptq "1. GPTQ to 3 bits, calibrated on text that the model writes itself" \
  --calib self --qep off --lpcd none
quantize_as lpcd "2. The default, GPTQ + QEP + LPCD on all submodules, on the same text" \
  --calib demo/gptq/.lpcd/calibration.safetensors --qep on --lpcd all

say "3. How good are they? Both beside the original, on this project's own documentation"
cat README.md CONTRIBUTING.md docs/*.md >demo/text.new
if cmp -s demo/text.new demo/text.txt; then rm demo/text.new; else mv demo/text.new demo/text.txt; fi
evaluate_run gptq
evaluate_run lpcd
echo
python3 tools/demo_table.py "$lpcd" "$model" demo gptq lpcd

say "4. Do they still speak?"
for each in "$model" demo/gptq demo/lpcd; do
  case "$each" in "$model") name="original" ;; demo/gptq) name="GPTQ, 3 bits" ;; *) name="GPTQ + QEP + LPCD, 3 bits" ;; esac
  printf '\n  %s:\n' "$name"
  "$lpcd" generate "$each" --prompt "$PROMPT" "${SPEECH[@]}" | fold -s -w 76 | sed 's/^/    /'
done

echo
echo "  A model of 135 million weights limps at 3 bits; what counts is the difference between the two."

printf '\nDone in %d min %02d s after installation and build. Next:\n' $(((SECONDS - start) / 60)) $(((SECONDS - start) % 60))
echo "  $lpcd generate demo/lpcd --prompt \"Your own words\"    $lpcd quantize --help"

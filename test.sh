#!/usr/bin/env bash
# Installs what is missing, builds, and runs every test: a release build with all of them, and a
# build with AddressSanitizer and UndefinedBehaviorSanitizer.
#
#   ./test.sh            everything
#   ./test.sh release    without the sanitizer build
#
# Fresh Debian 12 as root: nothing else is needed. Downloads (Python packages, a 98 MB model) go to
# .cache/ and are used again.
set -euo pipefail
cd "$(dirname "$0")"
case "${1:-all}" in
  all|release) ;;
  *) sed -n '2,9s/^# \{0,1\}//p' "$0" >&2; exit 1 ;;
esac
. tools/setup.sh

install_packages test
make_venv .cache/venv-test tests/requirements.txt
fetch_smollm2

export LPCD_TEST_MODELS="$PWD/.cache/models"
export LPCD_SMOLLM2_GGUF="$LPCD_TEST_MODELS/SmolLM2-135M-Instruct.Q4_1.gguf"
python="$PWD/.cache/venv-test/bin/python"
jobs=$(nproc)

run_build() {  # PRESET CTEST_OPTIONS...
  local preset=$1
  shift
  echo "== $preset: build"
  cmake --preset "$preset" -DLPCD_BUILD_TESTS=ON -DLPCD_TEST_PYTHON="$python" -DLPCD_WERROR=ON >/dev/null
  cmake --build --preset "$preset" -j "$jobs"
  echo "== $preset: tests"
  ctest --preset "$preset" -j "$jobs" "$@"
}

run_build release
if [ "${1:-all}" != release ]; then
  # Sanitizers slow the arithmetic down; what they look for needs no full sizes. PyTorch cannot run
  # beside AddressSanitizer's memory limits, so the interop tests stay with the release build, and so
  # do twenty runs whose point is an error and kill -9, after which nothing of the process is left to
  # look at (other tests take the same paths).
  LPCD_README_SAMPLES=8 run_build asan -LE "interop|install|lint" \
    -E "golden/tokenizer_ids|Onecomp|LpcdIsNeverWorse|e2e/kill_resume"
fi

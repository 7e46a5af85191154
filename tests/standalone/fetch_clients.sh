#!/bin/sh
# Fetches what the tests of C++ and JavaScript need into a folder: sh fetch_clients.sh FOLDER
# PYTHON chooses the interpreter whose pip is used.
#
# What cannot be fetched is told, and its tests say so when they are skipped.
set -eu
folder=$1
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)

if ! command -v npm > /dev/null; then
  echo "npm is not installed: no onnxruntime-web"
elif [ ! -d "$folder/node_modules/onnxruntime-web" ]; then
  cp "$(dirname "$0")/../../flash_export/standalone/templates/web/package.json.jinja" "$folder/package.json"
  npm install --prefix "$folder" --no-audit --no-fund --ignore-scripts || echo "npm cannot install onnxruntime-web"
fi

# TensorRT and the CUDA runtime, to compile against: no GPU is needed for that.
if [ -f "$folder/cuda/nvidia/cu13/include/crt/host_defines.h" ]; then
  :
elif ! "${PYTHON:-python3}" -m pip install --quiet --no-deps --upgrade --target "$folder/cuda" \
  'nvidia-cuda-runtime>=13,<14' 'nvidia-cuda-crt>=13,<14'; then
  echo "pip cannot fetch nvidia-cuda-runtime and nvidia-cuda-crt: no headers of the CUDA runtime"
fi
if [ -f "$folder/tensorrt/include/NvInferRuntime.h" ]; then
  :
elif ! command -v git > /dev/null; then
  echo "git is not installed: no headers of TensorRT"
else
  rm -rf "$folder/tensorrt"
  git clone --quiet --depth 1 --filter=blob:none --sparse --branch v10.16 https://github.com/NVIDIA/TensorRT.git \
    "$folder/tensorrt" && git -C "$folder/tensorrt" sparse-checkout set include ||
    echo "git cannot fetch github.com/NVIDIA/TensorRT: no headers of TensorRT"
fi

# Headers alone: the library is that of the Python package. Debian 12 has none, so they are taken from Debian 13.
if [ -d /usr/include/onnxruntime ] || [ -d "$folder/usr/include/onnxruntime" ]; then
  exit 0
fi
if ! command -v apt-get > /dev/null; then
  echo "apt-get is not installed: no headers of onnxruntime; install them"
  exit 0
fi
mkdir -p "$folder/apt/sources" "$folder/apt/lists/partial" "$folder/apt/cache/archives/partial"
cat > "$folder/apt/sources/trixie.sources" << END
Types: deb
URIs: http://deb.debian.org/debian
Suites: trixie
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
END
cd "$folder/apt"
fetch() {
  apt-get -qq -o Dir::Etc::sourcelist=/dev/null -o Dir::Etc::sourceparts="$folder/apt/sources" \
    -o Dir::State::lists="$folder/apt/lists" -o Dir::Cache="$folder/apt/cache" -o APT::Sandbox::User="$(id -un)" "$@"
}
if fetch update && fetch download libonnxruntime-dev; then
  dpkg -x libonnxruntime-dev_*.deb "$folder"
else
  echo "apt-get cannot fetch libonnxruntime-dev: no headers of onnxruntime"
fi

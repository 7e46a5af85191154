#!/bin/sh
# Fetches what the tests of C++ and JavaScript need into a folder: sh fetch_clients.sh FOLDER
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

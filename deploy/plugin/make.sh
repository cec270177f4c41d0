#!/bin/bash
# make.sh OUT_DIR [CXX]: builds the managed plugin's folder for `docker plugin create NAME OUT_DIR`:
# config.json and a root file system that holds one static program.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
out=${1:?usage: make.sh OUT_DIR [CXX]}
cxx=${2:-clang++-19}
rm -rf "$out"
mkdir -p "$out"/rootfs/{host,mnt/volumes,run/docker/plugins,proc,sys,dev,etc,tmp}
"$cxx" -std=c++23 -O2 -g0 -Wall -Wextra -Werror -static -fstack-protector-strong \
    -o "$out/rootfs/peplos-plugin" "$here/peplos_plugin.cc"
cp "$here/config.json" "$out/config.json"

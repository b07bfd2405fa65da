#!/usr/bin/env bash
# Fill data_root/VOCdevkit with PASCAL VOC 2012 and its augmented masks (about 2 GB to download).
#
#   bash download_voc.sh [data_root]        (default: ./data_root)
#
# Run it again after an interruption: it continues. Parts that are complete are left alone.
# The environment may set:
#   VOC_BASE_URL   where VOCtrainval_11-May-2012.tar lies; several URLs (spaces between) are tried in order
#   AUG_BASE_URL   the same for SegmentationClassAug.zip and list.zip
#   VOC_MD5        expected MD5 of the VOC archive (default: as published; empty: not checked)
#   VOC_SHA256, AUG_SHA256, LIST_SHA256     expected SHA-256 of the archives (default: not checked)
#   KEEP_ARCHIVES  any value keeps the archives in data_root
#   PYTHON         the Python to use (default: python3)
#
# examples:
#   bash download_voc.sh
#   bash download_voc.sh /data/voc
#   VOC_BASE_URL=https://example.org/mirror KEEP_ARCHIVES=1 bash download_voc.sh

set -euo pipefail

voc_mirrors="http://host.robots.ox.ac.uk/pascal/VOC/voc2012 https://pjreddie.com/media/files"
aug_mirrors="http://cs.jhu.edu/~cxliu/data http://www.cs.jhu.edu/~cxliu/data"
published_md5=6cd6e144f989b92b3379bac3b3de84fd

fail() {
  echo "error: $*" >&2
  exit 1
}

case ${1:-} in
  -h | --help)
    sed -n '2,/^$/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
    exit
    ;;
  -*) fail "unknown option $1; see --help" ;;
esac
[[ $# -le 1 ]] || fail "expected one argument, the data root, found $#; see --help"

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
data_root=${1:-data_root}
voc=$data_root/VOCdevkit/VOC2012
sets=$voc/ImageSets/Segmentation

# get FILE BASE_URLS FOLDER ROOT [OPTION...]: fetch the archive, make its folder ROOT the folder FOLDER
get() {
  local file=$1 folder=$3 root=$4 bases base urls=()
  read -ra bases <<<"$2"
  shift 4
  for base in "${bases[@]}"; do urls+=("${base%/}/$file"); done
  "${PYTHON:-python3}" "$here/tools/fetch.py" "${urls[@]}" --output "$data_root/$file" --unpack-to "$folder" \
    --root "$root" ${KEEP_ARCHIVES:+--keep-archive} "$@" ||
    fail "$file was not installed; see --help for other mirrors"
}

# missing LIST FOLDER SUFFIX: print the first file named by LIST that FOLDER lacks or holds empty.
# Lines are bare ids or '/JPEGImages/ID.jpg /SegmentationClassAug/ID.png'.
missing() {
  local list=$1 folder=$2 suffix=$3 id
  [[ -s $list ]] || { echo "$list"; return; }
  while read -r id _ || [[ -n $id ]]; do
    id=${id%$'\r'}
    id=${id##*/}
    id=${id%.*}
    [[ -z $id || -s $folder/$id$suffix ]] || { echo "$folder/$id$suffix"; return; }
  done <"$list"
}

train_aug_list() {
  if [[ -s $sets/train_aug.txt ]]; then echo "$sets/train_aug.txt"; else echo "$voc/list/train_aug.txt"; fi
}

missing_lists() {
  local list
  list=$(train_aug_list)
  [[ -s $list ]] || echo "$list"
}

missing_voc() {
  local name
  for name in train val; do
    missing "$sets/$name.txt" "$voc/JPEGImages" .jpg
    missing "$sets/$name.txt" "$voc/SegmentationClass" .png
  done
  missing "$(train_aug_list)" "$voc/JPEGImages" .jpg
}

missing_masks() {
  missing "$(train_aug_list)" "$voc/SegmentationClassAug" .png
  missing "$sets/val.txt" "$voc/SegmentationClassAug" .png
}

# ensure WHAT CHECK GET_ARGUMENT...: get the part unless CHECK prints nothing; CHECK decides again afterwards
ensure() {
  local what=$1 check=$2 lacking
  shift 2
  lacking=$("$check")
  if [[ -z $lacking ]]; then
    echo "$what: complete, nothing to do"
    return
  fi
  get "$@"
  lacking=$("$check")
  [[ -z $lacking ]] ||
    fail "$what: incomplete after unpacking, it lacks ${lacking%%$'\n'*}; try another mirror"
  echo "$what: complete"
}

# The lists come first: they say what the others must hold, and their host is the one that vanishes.
ensure "VOC2012/list" missing_lists \
  list.zip "${AUG_BASE_URL:-$aug_mirrors}" "$voc/list" list --sha256 "${LIST_SHA256:-}"
ensure "VOC2012" missing_voc \
  VOCtrainval_11-May-2012.tar "${VOC_BASE_URL:-$voc_mirrors}" "$voc" VOCdevkit/VOC2012 \
  --md5 "${VOC_MD5-$published_md5}" --sha256 "${VOC_SHA256:-}"
ensure "VOC2012/SegmentationClassAug" missing_masks \
  SegmentationClassAug.zip "${AUG_BASE_URL:-$aug_mirrors}" "$voc/SegmentationClassAug" SegmentationClassAug \
  --sha256 "${AUG_SHA256:-}"

for list in "$sets/train.txt" "$sets/val.txt" "$(train_aug_list)"; do
  echo "$(grep -c '[^[:space:]]' "$list") images in $list"
done

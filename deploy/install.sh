# Sourced by ./run and ./test: installs what is missing, builds, and says how long it took.
# Needs: repository (its root) set by the caller.

# say TEXT...: a line for the person who watches.
say() { printf '%s\n' "$*"; }

# die TEXT...: says why it stops, to stderr.
die() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

require_root() {
    [ "$(id -u)" = 0 ] || die "this needs root (mounts, loop devices, Docker): sudo $0 $*"
}

# missing_packages GROUP...: those of deploy/packages.txt that are not installed, one per line.
missing_packages() {
    local group package command wanted
    local -a names=()
    while read -r group package command; do
        case $group in '' | \#*) continue ;; esac
        for wanted in "$@"; do
            [ "$group" = "$wanted" ] || continue
            [ -n "$command" ] && command -v "$command" >/dev/null && continue
            names+=("$package")
        done
    done <"$repository/deploy/packages.txt"
    # One call for all of them: a second run costs milliseconds.
    dpkg-query -W -f='${binary:Package} ${db:Status-Status}\n' "${names[@]}" 2>/dev/null |
        awk -v all="${names[*]}" '
            { sub(/:.*/, "", $1); if ($2 == "installed") have[$1] = 1 }
            END { n = split(all, name, " ")
                  for (i = 1; i <= n; i++) if (!(name[i] in have)) print name[i] }'
}

# install_packages GROUP...: installs what is missing from Debian. Output goes to stdout.
install_packages() {
    local -a missing
    mapfile -t missing < <(missing_packages "$@")
    [ ${#missing[@]} = 0 ] && return 0
    say "installing ${#missing[@]} packages: ${missing[*]}"
    export DEBIAN_FRONTEND=noninteractive
    case " ${missing[*]} " in
        *" postgresql-15 "*) # For its binaries only: no cluster is made, no server started.
            mkdir -p /etc/postgresql-common
            [ -e /etc/postgresql-common/createcluster.conf ] ||
                echo 'create_main_cluster = false' >/etc/postgresql-common/createcluster.conf ;;
    esac
    apt-get -q update || say "apt-get update failed; trying with the lists that are here"
    apt-get -q -y --no-install-recommends -o DPkg::Lock::Timeout=300 \
        -o Dpkg::Options::=--force-confold install "${missing[@]}" ||
        die "apt-get could not install: ${missing[*]} (network? sources.list? see above)"
}

# build PRESET TARGET...: configures and builds, quietly when there is nothing to do.
build() {
    local preset=$1
    shift
    (cd "$repository" && cmake --preset "$preset" && ninja -C "build/$preset" "$@")
}

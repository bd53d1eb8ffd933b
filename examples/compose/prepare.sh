#!/bin/sh
# Make a certificate (in production: yours) and a password for each name given; what is printed is shown once.
set -eu
umask 022
mkdir -p secrets
test -e secrets/key.pem || openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 365 \
    -subj /CN=localhost -addext subjectAltName=DNS:localhost -keyout secrets/key.pem -out secrets/cert.pem 2> secrets/log
for name in "$@"; do
    password=$(openssl rand -base64 15)
    printf '%s:%s\n' "$name" "$(openssl passwd -apr1 "$password")" >> secrets/people
    printf '%s %s\n' "$name" "$password"
done

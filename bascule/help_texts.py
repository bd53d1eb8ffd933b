"""What the help of a command says below its options."""

RECOMMEND = """
A file of requests is JSON Lines; what a request leaves out counts as missing:
  {"user_id": "u7", "context": {"device": "phone"}, "history": [7, 12]}
  {"user_id": "u8", "filters": {"at_most": {"brand": 2}}}

example:
  bascule recommend --bundle runs/grocery/bundle --all-users --out all.parquet \\
    --where "brand = 'Private' and not category in ['EGGS']" --at-most category=2"""
EXPORT = """
The dot product of a user vector and an item vector is the item's score, without the terms
for owned items and for items that go with the history.

example:
  bascule export --bundle runs/grocery/bundle --side item --out new \\
    --rows new.tsv --columns item_id=sku"""
SERVE = """
Stops on SIGTERM or Ctrl-C after answering open requests; exit status 0.
POST /v1/reload needs the token in BASCULE_RELOAD_TOKEN or in a file, or an admin key.
With --workers, SIGHUP to the parent replaces all workers without a pause.
With --storage, the registry takes up what is pushed there within seconds. State and profiles
of a bundle at a URL are by default in the working folder.
Without --keys the service answers whoever can reach the address. To make a key and the line
of its hash:
  key=$(openssl rand -hex 32); echo "$key"
  echo "shop ask $(printf %s "$key" | sha256sum | cut -d' ' -f1)" >> keys

example:
  bascule serve --registry runs/registry \\
    --profiles runs/demo/profiles --state runs/demo/state"""
CONSUME = """
An entry of the stream has a field `body`: JSON as POST /v1/events takes it. It is acknowledged once
the state has its events on disk; what cannot be read goes to the stream NAME:dead. BASCULE_STREAM
in the environment may hold the URL. Stops on SIGTERM or Ctrl-C; exit status 0.

example:
  bascule consume --broker redis://localhost:6379 --stream events --bundle runs/demo/bundle"""
SIGN = """
The bundle keeps its version; its Ed25519 signature is the file manifest.sig. To make a key
and trust it (while a key is replaced, the file of trusted keys holds the old and the new one):
  openssl genpkey -algorithm ed25519 -out signing.pem
  openssl pkey -in signing.pem -pubout >> trusted.pem

example:
  bascule sign --bundle runs/demo/bundle --key signing.pem"""
DEMO = """
Trains into runs/demo of this folder, which takes about two minutes, or one with --quick. A run
that lies there is served as it is."""
FORGET = """
DIR/forgotten.json keeps a keyed hash of each user, so that later events and trainings leave
them out."""

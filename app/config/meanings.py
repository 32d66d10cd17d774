"""What each setting means, in the order of the operating page and of the fields of ``Settings``."""

from __future__ import annotations

from tables.called import called

MEANINGS: dict[str, str] = {
    "map_file": "The map: sources and layers, a TOML file.",
    "node": "This worker's name in its group, where each has one of its own; empty: `HOST-PORT`, of"
    " the host's name and `web_port`.",
    "state_folder": "Local store of open windows. May be wiped: it comes back from the journal.",
    "insecure": "Allow a bind without token and TLS, and servers beyond loopback without TLS.",
    "brokers": "Kafka brokers to start from, `host:port` separated by commas.",
    "group": "Kafka consumer group; its members share the partitions of one map. Empty:"
    " `treasure-map.MAP`.",
    "kafka_tls": "Encrypt connections to Kafka; also on where a certificate is given.",
    "kafka_ca_file": "PEM file of the authorities that sign the brokers; empty: the system's.",
    "kafka_cert_file": "PEM file of this client's certificate for Kafka.",
    "kafka_key_file": "PEM file of the key of `kafka_cert_file`.",
    "kafka_key_password_file": "File that holds the passphrase of `kafka_key_file`; empty:"
    " it has none.",
    "kafka_sasl_mechanism": "How to log in to Kafka: PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512.",
    "kafka_username": "Name to log in to Kafka with.",
    "kafka_password": "Password to log in to Kafka with.",
    "kafka_password_file": "File that holds `kafka_password`, with or without a line end; give one"
    " of the two.",
    "session_timeout_ms": "A member not heard of for this long loses its partitions.",
    "stuck_after_ms": "A partition whose log grows while its owner stands for this long is claimed"
    " again; until it moves, `/readyz` answers 503.",
    "fetch_max_wait_ms": "Longest a broker holds a fetch for more records: idle delay per fetch.",
    "fetch_bytes_max": "Most bytes a broker puts in one answer to a fetch.",
    "gather_ms_max": (
        "Longest that a busy worker gathers records for one cycle; a quiet one does not wait."
    ),
    "chunk_bytes_max": (
        "Most bytes of record values folded in one cycle; fewer where a cycle takes long."
    ),
    "chunk_records_max": "Most records folded in one cycle.",
    "pending_bytes_max": "Memory of closed cells that archive or coarser layers have not taken,"
    " past which sources pause; layer topics at twice as much.",
    "disk_free_bytes_min": "Free bytes on the disk of the state folder, or of an embedded archive,"
    " below which sources pause; layer topics at half of it.",
    "archive": "Where closed cells rest: `embedded` (one worker only) or `cassandra`.",
    "archive_folder": "Folder of the embedded archive, one for each map. May be moved, not wiped:"
    " a worker with another archive than its journals' is refused.",
    "early_emit_ms": "Cells of open windows are sent on too once those of their partition have not"
    " changed for so long; 0: never.",
    "cassandra_hosts": "Cassandra nodes to start from.",
    "cassandra_port": "Port of every Cassandra node.",
    "cassandra_keyspace": "Keyspace of the layer tables.",
    "cassandra_local_dc": "Data centre this worker reads and writes in (LOCAL_QUORUM).",
    "cassandra_replication": "Copies of a row: a number, or `dc1:3,dc2:3` by data centre.",
    "cassandra_tls": "Encrypt connections to Cassandra; also on where a certificate, or a name that"
    " certificates must have, is given.",
    "cassandra_tls_name": "The name in every node's certificate; empty: the host of"
    " `cassandra_hosts` that has the node's address, or the address where none has it.",
    "cassandra_ca_file": "PEM file of the authorities that sign the nodes; empty: the system's.",
    "cassandra_cert_file": "PEM file of this client's certificate for Cassandra.",
    "cassandra_key_file": "PEM file of the key of `cassandra_cert_file`.",
    "cassandra_key_password_file": "File that holds the passphrase of `cassandra_key_file`; empty:"
    " it has none.",
    "cassandra_username": "Role to log in to Cassandra with; a worker needs SELECT and MODIFY on"
    " the keyspace.",
    "cassandra_password": "Password to log in to Cassandra with.",
    "cassandra_password_file": "File that holds `cassandra_password`; give one of the two.",
    "web_host": "Address the query endpoint binds to.",
    "web_port": "Port of the query endpoint.",
    "web_token": "One bearer token with all scopes, which readers of the query endpoint send; 16 or"
    " more printable ASCII characters.",
    "web_token_file": "File that holds `web_token`; give one of the two.",
    "web_tokens_file": f"File of tokens with names and scopes, which `{called('token')}` writes;"
    " read again when it changes.",
    "peer_secret": "What workers of a group prove themselves to each other with, the same at all of"
    " them; 16 or more printable ASCII characters. Empty: derived from `web_token`.",
    "peer_secret_file": "File that holds `peer_secret`; give one of the two.",
    "web_cert_file": "PEM file of the query endpoint's certificate; turns TLS on.",
    "web_key_file": "PEM file of the key of `web_cert_file`.",
    "web_key_password_file": "File that holds the passphrase of `web_key_file`; empty:"
    " it has none.",
    "web_ca_file": "PEM file of the authorities that sign other workers' certificates; empty: the"
    " system's.",
    "web_url": "Where other workers reach this one's endpoint; empty: as `web_host` and `web_port`"
    " say, or this machine's own address where that is a wildcard.",
    "query_rows_max": "Most archive rows one query reads.",
    "query_cells_max": "Most live and archived rows one query merges.",
    "query_limit_max": "Most cells in one page of an answer.",
    "query_deadline_ms": "A query that takes longer is given up (HTTP 504).",
    "query_concurrency_max": "Queries answered at the same time; more are turned away (HTTP 503).",
    "query_cache_bytes_max": "Memory for archive rows that will not change; 0 keeps none.",
    "query_live_max": "Readers that follow cells at once; more are turned away (HTTP 503).",
}

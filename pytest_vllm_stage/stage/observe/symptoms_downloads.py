"""Symptoms of what is fetched over the network: models from a hub or a bucket, by our loader, KServe or the engine."""

from __future__ import annotations

#: Pattern, cause and action, as in `symptoms.Symptom`; most specific first.
ROWS = (
    (
        r"ProxyError\(|Tunnel connection failed",
        "the proxy refuses the connection ({line})",
        "correct HTTPS_PROXY, or let the proxy allow the host; NO_PROXY names what the cluster itself serves",
    ),
    (
        r"CERTIFICATE_VERIFY_FAILED",
        "a server's certificate is not trusted ({line})",
        "mount the authority that signs it, and name its file in REQUESTS_CA_BUNDLE, SSL_CERT_FILE or AWS_CA_BUNDLE",
    ),
    (
        r"WRONG_VERSION_NUMBER",
        "TLS is spoken to a port without TLS ({line})",
        "name the endpoint with http; for KServe's S3 Secret the annotation serving.kserve.io/s3-usehttps is 0",
    ),
    (
        r"(?:Failed to resolve '|Could not resolve host: )(?P<host>[\w.-]+)",
        "host {host} cannot be resolved",
        "check the name, the cluster's DNS and the egress of the namespace",
    ),
    (
        # Telemetry that is not delivered ends no process.
        r"ConnectionPool\(host='(?P<host>(?!stats\.)[^']+)', port=(?P<port>\d+)\): Max retries exceeded with url: "
        r"(?!/v1/(?:traces|metrics|logs)\b).*"
        r"(?:Network is unreachable|No route to host|Connection refused|timed out)",
        "port {port} of host {host} cannot be reached",
        "let a NetworkPolicy or the firewall allow the egress, or set HTTPS_PROXY",
    ),
    (
        # The line holds the token.
        r"Illegal header value b?['\"]|InvalidHeader: Invalid leading whitespace",
        "a token that is sent as a header has a line break or a space in it",
        "store the value in the Secret again without them: an editor, or echo without -n, adds a line break",
    ),
    (
        r"Temporary failure in name resolution|Name or service not known",
        "a host cannot be resolved ({line})",
        "check the name, the cluster's DNS and the egress of the namespace",
    ),
    (
        r"outgoing traffic has been disabled|[Oo]ffline mode is enabled|OfflineModeIsEnabled",
        "the model is not on the volume, and HF_HUB_OFFLINE forbids a download ({line})",
        "name the volume's path in --model, or download the model first",
    ),
    (
        r"(?P<what>Repository|Revision|Entry) Not Found for url: (?P<url>\S+?)\.?$",
        "{what} not found, or the token has no access to it: {url}",
        "correct MODEL_SOURCE and its revision; the Hub answers alike for a private model without a token",
    ),
    (
        r"429 Client Error|429 Too Many Requests",
        "the server limits requests ({line})",
        "wait, then run the download Job again with a token: the Hub allows more with one",
    ),
    (
        r"\(NoSuchBucket\)|NoSuchBucket:",
        "the bucket does not exist ({line})",
        "correct storageUri or MODEL_SOURCE, or create the bucket",
    ),
    (
        r"\((?:InvalidAccessKeyId|SignatureDoesNotMatch|AccessDenied|InvalidToken|ExpiredToken|403)\) when calling",
        "the object store refuses the credentials ({line})",
        "correct the Secret of the ServiceAccount (KServe) or of the Job: keys, endpoint and region",
    ),
    (
        r"RequestTimeTooSkewed",
        "the clocks of the node and of the object store differ ({line})",
        "set the clocks: signatures are valid for 15 minutes",
    ),
    (
        r"Unable to locate credentials|NoCredentialsError",
        "the container has no S3 credentials ({line})",
        "name the Secret in the ServiceAccount that the InferenceService uses",
    ),
    (
        r"\(AuthorizationHeaderMalformed\) when calling|\((?:PermanentRedirect|301)\) when calling",
        "the bucket is in another region, or at another endpoint ({line})",
        "correct AWS_DEFAULT_REGION and the endpoint in the Secret (KServe: annotation serving.kserve.io/s3-region)",
    ),
    (
        r"\(400\) when calling the Head(?:Object|Bucket)",
        "the object store refuses the request without a reason: another region, or an expired token ({line})",
        "correct AWS_DEFAULT_REGION, or renew the session token in the Secret",
    ),
    (
        r"Invalid endpoint: (?P<url>\S+)",
        "the S3 endpoint {url} is not a URL",
        "write it as host:port, without a space or a path (KServe: annotation serving.kserve.io/s3-endpoint)",
    ),
    (
        r"(?:Could not connect to the|(?:Connect|Read) timeout on) endpoint URL: ['\"](?P<url>[^'\"?]+)",
        "the object store does not answer at {url}",
        "check the endpoint in the Secret, MinIO's pod, and NetworkPolicies between the namespaces",
    ),
    (
        r"Cannot recognize storage type for (?P<uri>\S+)",
        "KServe does not know the scheme of storageUri {uri}",
        "use pvc://, s3://, hf://, gs://, oci:// or https://",
    ),
    (
        r"No model found in (?P<uri>\S+?)\.?$",
        "there is no object under {uri}",
        "correct storageUri; it names a prefix that ends at a folder",
    ),
    (
        r"Cannot access gated repo for url (?P<url>\S+?)\.?$",
        "token refused: no access to gated model file {url}",
        "renew HF_TOKEN in the Secret huggingface-token, and accept the model's terms for that account",
    ),
    (
        r"(?:401|403) (?:Client Error|Unauthorized|Forbidden)|GatedRepoError|Invalid user token",
        "token refused ({line})",
        "renew HF_TOKEN in the Secret huggingface-token, and accept the model's terms for that account",
    ),
    (
        r"LocalEntryNotFoundError: An error happened while trying to locate",
        "the Hub does not answer, and the model is not in the cache ({line})",
        "check the egress of the namespace and HTTPS_PROXY, or name the volume's path in --model",
    ),
    (
        r"FlexibleChecksumError|XAmzContentChecksumMismatch|\(BadDigest\)",
        "a file did not arrive as it was sent ({line})",
        "compare the object's SHA-256 with its source's: a proxy on the way, or the store's disk, altered it",
    ),
    (
        r"IncompleteRead\(|ChunkedEncodingError",
        "the download broke off ({line})",
        "run it again; a proxy that limits sizes or times breaks it off at the same place each time",
    ),
)

"""Asks every one of Ray's services something, on every address given, and prints how each answers.

    python knock.py TOKEN-FILE HOST:PORT…      /dev/null: without a token

Prints JSON: `{question: {address: answer}}`, an answer being an HTTP status or the name of a gRPC code; `no answer`
where the port speaks neither. A question is asked as bytes: nothing of Ray's own client is between it and the server.
"""

import json
import sys
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc

CALLS = (  # an empty message is a valid request of each
    "NodeInfoGcsService/GetAllNodeInfo",
    "InternalKVGcsService/InternalKVKeys",
    "JobInfoGcsService/GetAllJobInfo",
    "ActorInfoGcsService/GetAllActorInfo",
    "NodeManagerService/GetNodeStats",
    "CoreWorkerService/GetCoreWorkerStats",
    "CoreWorkerService/PushTask",
    "ObjectManagerService/Pull",
    "LogService/ListLogs",
    "RayletDriver/ClusterInfo",
)
PAGES = {  # with what is posted there
    "/api/version": None,
    "/api/jobs/": None,
    "/api/v0/nodes": None,
    "/api/v0/logs": None,
    "/api/job_agent/jobs/": b"{}",
    "/get_or_create_runtime_env": b"",
}


def call(address: str, method: str, token: str) -> str:
    with grpc.insecure_channel(address) as channel:
        ask = channel.unary_unary(f"/ray.rpc.{method}")
        metadata = [("authorization", f"Bearer {token}")] if token else []
        try:
            ask(b"", timeout=3, metadata=metadata)
        except grpc.RpcError as error:
            code = error.code().name
            return "no answer" if code in ("UNAVAILABLE", "DEADLINE_EXCEEDED") else code
    return "OK"


def get(address: str, page: str, token: str) -> str:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    request = urllib.request.Request(f"http://{address}{page}", PAGES[page], headers)
    try:
        with urllib.request.urlopen(request, timeout=3) as answer:  # noqa: S310
            return str(answer.status)
    except urllib.error.HTTPError as error:
        return str(error.code)
    except Exception:
        return "no answer"


def main() -> None:
    token, addresses = Path(sys.argv[1]).read_text().strip(), sys.argv[2:]

    def ask(question: str) -> dict[str, str]:
        knock = get if question in PAGES else call
        return {address: knock(address, question, token) for address in addresses}

    questions = [*CALLS, *PAGES]
    with ThreadPoolExecutor(len(questions)) as pool:  # some ports take a connection and never say a word
        print(json.dumps(dict(zip(questions, pool.map(ask, questions), strict=True))))


if __name__ == "__main__":
    main()

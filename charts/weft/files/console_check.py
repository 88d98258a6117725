"""Signs in to the console as a browser does, and asks it for runs, which it asks the trainer for."""

import http.cookiejar
import json
import os
import ssl
import sys
import urllib.request
from pathlib import Path

console = json.loads(Path(os.environ["WEFT_ENDPOINTS"]).read_text())["services"]["console"]
context = ssl.create_default_context(cafile=console.get("tls_ca"))
cookies = urllib.request.HTTPCookieProcessor(http.cookiejar.CookieJar())
opener = urllib.request.build_opener(urllib.request.HTTPSHandler(context=context), cookies)

body = json.dumps({"token": Path(console["token_file"]).read_text().strip()}).encode()
headers = {"Content-Type": "application/json", "X-Weft-Console": "1"}
opener.open(urllib.request.Request(f"{console['url']}api/session", body, headers), timeout=30)  # noqa: S310
with opener.open(f"{console['url']}api/runs", timeout=30) as answer:
    sys.stdout.write(f"console: {answer.status}, {len(json.load(answer).get('runs', []))} runs\n")

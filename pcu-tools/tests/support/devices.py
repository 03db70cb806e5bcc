"""What devices behind HTTP answer, by their documentation: a CGI script. The server does HTTP, TLS and passwords.

The folder above the script's has: device (which one), mode (how it misbehaves), state (of its outlets), log (of requests).
"""

import json
import os
import re
import sys
import time
import urllib.parse
import xml.etree.ElementTree as ET

FOLDER = os.path.dirname(os.environ["DOCUMENT_ROOT"].rstrip("/"))
PASSWORD = "p&w\"=+ %\u00fc"
URI = os.environ["REQUEST_URI"]
METHOD = os.environ["REQUEST_METHOD"]
PATH, _, QUERY = URI.partition("?")
BODY = sys.stdin.buffer.read(int(os.environ.get("CONTENT_LENGTH") or 0))


class Answer(Exception):
    def __init__(self, body, status=200, headers=(), kind="text/html"):
        self.body, self.status, self.headers, self.kind = body, status, headers, kind


def as_json(value, status=200, headers=()):
    return Answer(json.dumps(value), status, headers, "application/json")


def file(name):
    return os.path.join(FOLDER, name)


def read(name, default=""):
    try:
        with open(file(name)) as f:
            return f.read()
    except FileNotFoundError:
        return default


MODE = read("mode", "ok").strip()
STATE = json.loads(read("state", "{}"))


def is_on(outlet):
    return STATE.get(str(outlet), False)


def switch(outlet, on):
    if MODE == "stuck":
        return
    STATE[str(outlet)] = on
    with open(file("state.new"), "w") as f:
        json.dump(STATE, f)
    os.rename(file("state.new"), file("state"))


def log(line):
    with open(file("log"), "a") as f:
        f.write(line + "\n")


def query():
    return dict(urllib.parse.parse_qsl(QUERY, keep_blank_values=True))


def form():
    assert os.environ["CONTENT_TYPE"] == "application/x-www-form-urlencoded"
    return dict(urllib.parse.parse_qsl(BODY.decode(), keep_blank_values=True))


def json_body():
    assert os.environ["CONTENT_TYPE"] == "application/json"
    return json.loads(BODY)


def cookie(name):
    for pair in os.environ.get("HTTP_COOKIE", "").split("; "):
        key, _, value = pair.partition("=")
        if key == name:
            return value
    return None


def tasmota():
    if PATH != "/cm":
        return Answer("File Not Found", 404)
    asked = query()
    if asked.get("user") != "admin" or asked.get("password") != PASSWORD:
        return as_json({"WARNING": "Need user=<username>&password=<password>"})
    found = re.fullmatch(r"Power([12])(?: (On|Off))?", asked["cmnd"])
    if not found:
        return as_json({"Command": "Unknown"})
    outlet, action = found.groups()
    if action:
        switch(outlet, action == "On")
    return as_json({"POWER" + outlet: "ON" if is_on(outlet) else "OFF"})


def shelly2():
    asked = json_body()
    if asked["id"] not in (0, 1):
        return as_json({"code": -105, "message": "Argument 'id', value %s not found!" % asked["id"]}, 500)
    if METHOD == "POST" and PATH == "/rpc/Switch.Set":
        before = is_on(asked["id"])
        switch(asked["id"], asked["on"])
        return as_json({"was_on": before})
    assert PATH == "/rpc/Switch.GetStatus"
    return as_json({"id": asked["id"], "source": "init", "output": is_on(asked["id"])})


def dli():
    found = re.fullmatch(r"/restapi/relay/outlets/(\d)/(state|physical_state|cycle)/", PATH)
    if not found or int(found[1]) > 7:
        return as_json({}, 404)
    outlet, what = int(found[1]), found[2]
    assert os.environ["HTTP_ACCEPT"] == "application/json"
    if METHOD == "GET":
        return as_json(is_on(outlet))
    if os.environ.get("HTTP_X_CSRF") is None:
        return as_json({}, 403)
    if METHOD == "POST" and what == "cycle":
        log("cycle %d" % outlet)
        return Answer("", 204)
    assert METHOD == "PUT" and what == "state"
    switch(outlet, {"true": True, "false": False}[form()["value"]])
    return Answer("", 204)


def netio():
    assert PATH == "/netio.json"
    if METHOD == "POST":
        for output in json_body()["Outputs"]:
            if output["ID"] not in (1, 2, 3, 4):
                return as_json({}, 400)
            if output["Action"] == 2:
                log("short off %d" % output["ID"])
            else:
                switch(output["ID"], output["Action"] == 1)
    outputs = [{"ID": n, "Name": "output_%d" % n, "State": int(is_on(n)), "Action": 6} for n in (4, 3, 2, 1)]
    return as_json({"Agent": {"Model": "4All", "NumOutputs": 4}, "Outputs": outputs})


def epowerswitch():
    if PATH != "/hidden.htm":
        return Answer("", 404)
    for outlet, action in re.findall(r"M0:O(\d)=(\w+)", QUERY):
        if action == "RESTART":
            log("restart " + outlet)
        else:
            switch(outlet, action == "ON")
    lines = ["M0:O%d=%s" % (n, "On" if is_on(n) else "Off") for n in (1, 2, 3, 4)]
    return Answer("Hidden Page<br>\nePowerSwitch 8M+ R2<br>\nVersion: 2.1.0.0<br>\n" + "<br>\n".join(lines))


def energenie():
    inside = os.path.exists(file("inside"))
    if PATH == "/login.html" and METHOD == "POST":
        if form() != {"pw": PASSWORD}:
            return Answer("<title>EnerGenie</title> login")
        open(file("inside"), "w").close()
        return Answer('<div class="boxmenuitem"><a href="login.html">Log Out</a></div>')
    if PATH == "/login.html":
        if inside:
            os.remove(file("inside"))
            log("logout")
        return Answer("<title>EnerGenie</title> login")
    if not inside:
        return Answer("<title>EnerGenie</title> login")
    if METHOD == "POST":
        for name, value in form().items():
            switch(name.removeprefix("cte"), value == "1")
    return Answer("<script>var sockstates = [%s];</script>" % ",".join(str(int(is_on(n))) for n in (1, 2, 3, 4)))


def mfi():
    if PATH == "/":
        return Answer("", headers=["Set-Cookie: AIROS_SESSIONID=5eed; Path=/; HttpOnly"])
    if PATH == "/login.cgi":
        if cookie("AIROS_SESSIONID") == "5eed" and form() == {"username": "ubnt", "password": PASSWORD}:
            open(file("inside"), "w").close()
            return Answer("", 302, ["Location: /power"])
        return Answer('<form action="/login.cgi">')
    if cookie("AIROS_SESSIONID") != "5eed" or not os.path.exists(file("inside")):
        return Answer('<form action="/login.cgi">')
    found = re.fullmatch(r"/sensors/([1-3])/", PATH)
    if METHOD == "PUT" and found:
        switch(found[1], form()["output"] == "1")
        return as_json({"status": "success"})
    assert PATH == "/mfi/sensors.cgi"
    return as_json({"sensors": [{"port": n, "output": int(is_on(n))} for n in (1, 2, 3)], "status": "success"})


def geist():
    asked = json_body()
    if PATH == "/api/auth/admin":
        if asked["data"]["password"] != PASSWORD:
            return as_json({"data": {}, "retCode": 1, "retMsg": "Invalid login"})
        return as_json({"data": {"admin": True, "control": True, "token": "a67edf14"}, "retCode": 0, "retMsg": "OK"})
    found = re.fullmatch(r"/api/dev/FEE6/outlet/([0-3])(/state)?", PATH)
    if not found or asked["token"] != "a67edf14":
        return as_json({"data": {}, "retCode": 2, "retMsg": "Invalid path or token"})
    if found[2]:
        return as_json({"data": "on" if is_on(found[1]) else "off", "retCode": 0, "retMsg": "OK"})
    action = asked["data"]["action"]
    if action == "reboot":
        log("reboot " + found[1])
    else:
        switch(found[1], action == "on")
    return as_json({"data": {}, "retCode": 0, "retMsg": "OK"})


def intellinet():
    if PATH == "/control_outlet.htm":
        asked = query()
        for n in range(8):
            if asked.get("outlet%d" % n) == "1":
                switch(n, asked["op"] == "0")
        return Answer("")
    assert PATH == "/status.xml"
    states = "".join("<outletStat%d>%s</outletStat%d>" % (n, "on" if is_on(n) else "off", n) for n in range(8))
    return Answer("<response><cur0>0.1</cur0>%s</response>" % states, kind="text/xml")


def home_assistant():
    if os.environ.get("HTTP_AUTHORIZATION") != "Bearer eyJ0.long-lived":
        return Answer("401: Unauthorized", 401)
    if METHOD == "GET" and PATH.startswith("/api/states/"):
        entity = urllib.parse.unquote(PATH.removeprefix("/api/states/"))
        if entity != "switch.rack & 1/2":
            return as_json({"message": "Entity not found."}, 404)
        return as_json({"entity_id": entity, "state": "on" if is_on(entity) else "off"})
    found = re.fullmatch(r"/api/services/switch/turn_(on|off)", PATH)
    switch(json_body()["entity_id"], found[1] == "on")
    return as_json([])


SOAP = "{http://www.w3.org/2003/05/soap-envelope}"
ADDRESSING = "{http://schemas.xmlsoap.org/ws/2004/08/addressing}"
WSMAN = "{http://schemas.dmtf.org/wbem/wsman/1/wsman.xsd}"
CIM = "http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/"
INTEL = "http://intel.com/wbem/wscim/1/amt-schema/1/"


def envelope(body):
    text = '<?xml version="1.0" encoding="UTF-8"?><a:Envelope xmlns:a="%s"><a:Header/><a:Body>%s</a:Body></a:Envelope>'
    return Answer(text % (SOAP[1:-1], body), kind="application/soap+xml")


def fault(subcode, reason):
    answer = envelope(
        "<a:Fault><a:Code><a:Value>a:Sender</a:Value><a:Subcode><a:Value>w:%s</a:Value></a:Subcode></a:Code>"
        '<a:Reason><a:Text xml:lang="en-US">%s</a:Text></a:Reason></a:Fault>' % (subcode, reason)
    )
    answer.status = 400
    return answer


def shape(element):
    """A message without what two clients may write differently: prefixes, white space, and keys that are not needed."""
    name = element.get("Name") or element.get(WSMAN + "Name")
    if name == "CreationClassName":
        return None
    children = [shape(child) for child in element]
    return [element.tag, name, (element.text or "").strip(), sorted((c for c in children if c), key=str)]


def amt():
    assert PATH == "/wsman" and METHOD == "POST"
    message = ET.fromstring(BODY)
    header, body = message.find(SOAP + "Header"), message.find(SOAP + "Body")
    action = header.find(ADDRESSING + "Action").text
    resource = header.find(WSMAN + "ResourceURI").text
    selectors = header.find(WSMAN + "SelectorSet")
    content = list(body)
    # To be compared with another client's.
    parts = [action, resource, header.find(ADDRESSING + "To").text, shape(selectors) if selectors is not None else None]
    log(json.dumps(parts + [[shape(part) for part in content]]))
    if MODE == "denied":
        return fault("AccessDenied", "The sender was not authorized to access the resource.")
    options = json.loads(read("options", '{"BIOSSetup": "false", "UseSOL": "true", "UseIDER": "false"}'))
    if action.endswith("/transfer/Get"):
        name = resource.rsplit("/", 1)[1]
        fields = {
            "CIM_AssociatedPowerManagementService": [("AvailableRequestedPowerStates", n) for n in (8, 5, 10)]
            + [("PowerState", 2 if is_on("power") else 8)],
            "AMT_GeneralSettings": [("DigestRealm", "Digest:00"), ("HostName", "n1")],
            "AMT_BootSettingData": [("InstanceID", "Intel(r) AMT:BootSettingData 0")] + list(options.items()),
        }.get(name)
        if fields is None:
            return fault("DestinationUnreachable", "No route can be determined to reach the destination role.")
        inside = "".join("<g:%s>%s</g:%s>" % (key, value, key) for key, value in fields)
        return envelope('<g:%s xmlns:g="%s">%s</g:%s>' % (name, resource, inside, name))
    if action.endswith("/transfer/Put"):
        assert resource == INTEL + "AMT_BootSettingData"
        new = {child.tag.partition("}")[2]: child.text for child in content[0]}
        assert new.pop("InstanceID") == "Intel(r) AMT:BootSettingData 0"
        with open(file("options"), "w") as f:
            json.dump(new, f)
        return envelope('<g:AMT_BootSettingData xmlns:g="%s"/>' % resource)
    method = action.rsplit("/", 1)[1]
    assert content[0].tag == "{%s}%s_INPUT" % (resource, method), content[0].tag
    parameter = lambda name: content[0].find("{%s}%s" % (resource, name))
    value = 0
    if method == "RequestPowerStateChange":
        wanted = int(parameter("PowerState").text)
        if MODE == "busy":
            value = 4099
        elif wanted in (5, 10) and not is_on("power"):
            value = 4097
        elif wanted in (2, 8):
            switch("power", wanted == 2)
    elif method == "ChangeBootOrder":
        source = parameter("Source")
        source = source.find(".//" + WSMAN + "Selector").text if source is not None else ""
        # What Intel's reference says of boot sources and options.
        value = 5 if source and "true" in (options["UseSOL"], options["BIOSSetup"]) else 0
        if value == 0:
            with open(file("source"), "w") as f:
                f.write(source)
    elif method == "SetBootConfigRole":
        with open(file("role"), "w") as f:
            f.write(parameter("Role").text)
    return envelope('<g:%s_OUTPUT xmlns:g="%s"><g:ReturnValue>%d</g:ReturnValue></g:%s_OUTPUT>' % (method, resource, value, method))


def write(answer):
    out = sys.stdout.buffer
    lines = ["Status: %d" % answer.status, "Content-Type: " + answer.kind, *answer.headers]
    out.write(("\r\n".join(lines) + "\r\n\r\n").encode())
    out.write(answer.body.encode())


def main():
    out = sys.stdout.buffer
    if MODE.isdigit():
        write(Answer("<h1>the device's own words</h1>", int(MODE)))
    elif MODE == "garbage":
        out.write(b"Status: 200\r\nContent-Type: text/html\r\n\r\n" + bytes(range(256)) * 16)
    elif MODE == "flood":
        out.write(b"Status: 200\r\nContent-Type: text/html\r\n\r\n")
        for _ in range(4096):
            out.write(b"x" * 65536)
    elif MODE == "hang":
        time.sleep(600)
    else:
        write(globals()[read("device").strip()]())


try:
    main()
except BrokenPipeError:
    os._exit(0)

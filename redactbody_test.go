package requestmirror

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"math/rand"
	"mime"
	"mime/multipart"
	"net/http"
	"net/url"
	"reflect"
	"strings"
	"testing"
	"unicode/utf16"
	"unicode/utf8"
)

// hiddenNames are the fields that the tests hide.
var hiddenNames = []string{"password", "Token", "card number", `a"b\c`, "x.y*(", "größe", "😀", "t/k", "client_secret"}

const (
	typeJSON = "application/json"
	typeForm = "application/x-www-form-urlencoded; charset=UTF-8"
)

func bodyHeader(contentType string) http.Header {
	if contentType == "" {
		return http.Header{}
	}
	return http.Header{"Content-Type": {contentType}}
}

// bodyCases are bodies and what leaves of them.
var bodyCases = []struct {
	name, contentType, body, want string
}{
	{"nothing to hide", typeJSON, `{"user": "a", "n": [1.50, 1e400, -0]}`, `{"user": "a", "n": [1.50, 1e400, -0]}`},
	{"a text", typeJSON, `{"user":"a","password":"s3cr3t","n":1}`, `{"user":"a","password":"REDACTED","n":1}`},
	{"an empty text tells as little as another", typeJSON, `{"password":""}`, `{"password":"REDACTED"}`},
	{"numbers and words", typeJSON, `{"password":-1.5e+7,"token":true ,"Token":null}`, `{"password":"REDACTED","token":"REDACTED" ,"Token":"REDACTED"}`},
	{"a name in another case", typeJSON, `{"PassWord":"a","TOKEN":"b","GRÖSSE":1,"GRÖßE":2}`, `{"PassWord":"REDACTED","TOKEN":"REDACTED","GRÖSSE":1,"GRÖßE":"REDACTED"}`},
	{"a long s is an s, as Go has it", typeJSON, `{"paſsword":"a"}`, `{"paſsword":"REDACTED"}`},
	{"a Kelvin sign is a k", typeJSON, "{\"to\u212aen\":1}", "{\"to\u212aen\":\"REDACTED\"}"},
	{"spaces stay", typeJSON, "{\r\n\t\"password\" \t:\n  \"s3cr3t\" \n,\"a\" : 1 }", "{\r\n\t\"password\" \t:\n  \"REDACTED\" \n,\"a\" : 1 }"},
	{"order and duplicates stay", typeJSON, `{"z":1,"password":"a","z":2,"password":"b"}`, `{"z":1,"password":"REDACTED","z":2,"password":"REDACTED"}`},
	{"any depth", typeJSON, `[[{"a":{"b":[{"password":"s3cr3t"},3]}}]]`, `[[{"a":{"b":[{"password":"REDACTED"},3]}}]]`},
	{"an object goes as a whole", typeJSON, `{"password":{"a":"}","b":["\"",{"password":1}]},"c":1}`, `{"password":"REDACTED","c":1}`},
	{"an array goes as a whole", typeJSON, `{"password":[ "]", [1], {"a":"["} ] ,"c":1}`, `{"password":"REDACTED" ,"c":1}`},
	{"escaped quotes in the value", typeJSON, `{"password":"a\"b\\","c":"d\\\"e"}`, `{"password":"REDACTED","c":"d\\\"e"}`},
	{"a value that looks like JSON", typeJSON, `{"password":"\",\"a\":{[}]","c":1}`, `{"password":"REDACTED","c":1}`},
	{"a name in a text is no field", typeJSON, `{"a":"\"password\":\"x\"","b":"password","c":"{\"password\" : \"x\"}"}`, `{"a":"\"password\":\"x\"","b":"password","c":"{\"password\" : \"x\"}"}`},
	{"a name as a value is no field", typeJSON, `["password","Token",{"a":"password"}]`, `["password","Token",{"a":"password"}]`},
	{"a longer name is no field", typeJSON, `{"password2":"a","my password":"b","passwor":"c"}`, `{"password2":"a","my password":"b","passwor":"c"}`},
	{"a name with a space", typeJSON, `{"card number":"1","cardnumber":"2"}`, `{"card number":"REDACTED","cardnumber":"2"}`},
	{"a name with a quote and a backslash", typeJSON, `{"a\"b\\c":1,"A\u0022B\u005cC":2}`, `{"a\"b\\c":"REDACTED","A\u0022B\u005cC":"REDACTED"}`},
	{"a name with the characters of expressions", typeJSON, `{"x.y*(":1,"xzy*(":2,"xyyy(":3}`, `{"x.y*(":"REDACTED","xzy*(":2,"xyyy(":3}`},
	{"a name with a slash", typeJSON, `{"t/k":1,"t\/k":2}`, `{"t/k":"REDACTED","t\/k":"REDACTED"}`},
	{"a name with a character of four bytes", typeJSON, `{"😀":1,"\ud83d\uDE00":2,"\ud83d":3}`, `{"😀":"REDACTED","\ud83d\uDE00":"REDACTED","\ud83d":3}`},
	{"an escaped name", typeJSON, `{"p\u0061ssw\u006Frd":"a","\u0050assword":"b","pa\u017fsword":"c","gr\u00D6\u00dfe":"d"}`, `{"p\u0061ssw\u006Frd":"REDACTED","\u0050assword":"REDACTED","pa\u017fsword":"REDACTED","gr\u00D6\u00dfe":"REDACTED"}`},
	{"escapes elsewhere", typeJSON, `{"a":"\u0070assword","\u00e9":"\\u0061","password":"b"}`, `{"a":"\u0070assword","\u00e9":"\\u0061","password":"REDACTED"}`},
	{"bytes that are no UTF-8", typeJSON, "{\"a\":\"\xff\xe2\",\"password\":\"\xff\xe2\x82\",\"b\":\"\x80\"}", "{\"a\":\"\xff\xe2\",\"password\":\"REDACTED\",\"b\":\"\x80\"}"},
	{"a line for each value", "application/x-ndjson", "{\"password\":1}\n{\"password\":[2]}\n{\"a\":3}\n", "{\"password\":\"REDACTED\"}\n{\"password\":\"REDACTED\"}\n{\"a\":3}\n"},
	{"a type of its own", "application/vnd.example+json; charset=utf-8", `{"password":1}`, `{"password":"REDACTED"}`},
	{"a stream of events", "text/event-stream", "data: {\"password\":\"x\"}\n\n", "data: {\"password\":\"REDACTED\"}\n\n"},
	{"a type in capitals", "Application/JSON", `{"password":1}`, `{"password":"REDACTED"}`},
	{"JSON that is said to be text", "text/plain", " \n[{\"password\":1}]", " \n[{\"password\":\"REDACTED\"}]"},
	{"JSON that is said to be a form, as curl -d does", typeForm, `{"password":"a&b=c"}`, `{"password":"REDACTED"}`},
	{"JSON without a type, after a byte order mark", "", "\ufeff{\"password\":1}", "\ufeff{\"password\":\"REDACTED\"}"},
	{"a text that is no JSON", "text/plain", `the "password": "x"`, `the "password": "x"`},
	{"a form that is said to be text", "text/plain", `password=x`, `password=x`},

	{"cut before the value", typeJSON, `{"password": `, `{"password": `},
	{"cut in a text", typeJSON, `{"a":1,"password":"s3cr`, `{"a":1,"password":"REDACTED"`},
	{"cut after a backslash", typeJSON, `{"password":"s3cr\`, `{"password":"REDACTED"`},
	{"cut in a character", typeJSON, "{\"password\":\"s3cr\xe2\x82", `{"password":"REDACTED"`},
	{"cut after the first quote", typeJSON, `{"password":"`, `{"password":"REDACTED"`},
	{"cut in a number", typeJSON, `{"password":12`, `{"password":"REDACTED"`},
	{"cut in an object", typeJSON, `{"password":{"a":"b"`, `{"password":"REDACTED"`},
	{"cut in an array, with another field in it", typeJSON, `{"password":[{"token":`, `{"password":"REDACTED"`},

	{"a quote that is not escaped", typeJSON, `{"password":"s3c"r3t","a":1}`, `{"password":"REDACTED","a":1}`},
	{"a text that has no end takes what follows", typeJSON, `{"password":"s3cr3t, "a":1}`, `{"password":"REDACTED"}`},
	{"a field after a text that has no end", typeJSON, "{\"password\":\"s3cr3t, \"token\":\n\"s3cr3t\"}", "{\"password\":\"REDACTED\"\n\"REDACTED\"}"},
	{"a text that has no end before", typeJSON, `{"a":"b, "password":"s3cr3t"}`, `{"a":"b, "password":"REDACTED"}`},
	{"a text without quotes", typeJSON, `{"password": s3c r3t ,"a":1}`, `{"password": "REDACTED" ,"a":1}`},
	{"a text in single quotes", typeJSON, `{"password":'s3c,r}3t',"a":1}`, `{"password":"REDACTED","a":1}`},
	{"an object that is wrong takes the rest", typeJSON, `{"password":{a},"b":1}`, `{"password":"REDACTED"`},
	{"no value", typeJSON, `{"password":,"a":1}`, `{"password":,"a":1}`},
	{"comments, as Rails and Newtonsoft take them", typeJSON, "{\"password\"/* a, */ // b\n:/*c,\"d*//*e*/\n\"s3c, r3t\",\"token\": //f,g\n [\"s3cr3t\"],\"h\":1}", "{\"password\"/* a, */ // b\n:\"REDACTED\",\"token\": \"REDACTED\",\"h\":1}"},
	{"a comment that has no end takes the rest", typeJSON, `{"password":/*"s3cr3t",`, `{"password":"REDACTED"`},
	{"other spaces, as Newtonsoft takes them", typeJSON, "{\"password\"\u00a0\v:\u2003\ufeff\"s3c,r3t\",\"a\":1}", "{\"password\"\u00a0\v:\u2003\ufeff\"REDACTED\",\"a\":1}"},
	{"a backslash before the key", typeJSON, `{\"password":"s3cr3t"}`, `{\"password":"REDACTED"}`},

	{"a form", typeForm, "user=a&password=s3cr3t&n=%7E+", "user=a&password=REDACTED&n=%7E+"},
	{"every field of a form, in any case", typeForm, "password=a&PASSWORD=b&token=&a=1", "password=REDACTED&PASSWORD=REDACTED&token=REDACTED&a=1"},
	{"escaped names", typeForm, "p%61ssword=a&%50%41SSWORD=b&gr%c3%b6%C3%9fe=c&größe=d&gr\xc3%b6ße=g&card+number=e&card%20number=f", "p%61ssword=REDACTED&%50%41SSWORD=REDACTED&gr%c3%b6%C3%9fe=REDACTED&größe=REDACTED&gr\xc3%b6ße=REDACTED&card+number=REDACTED&card%20number=REDACTED"},
	{"brackets and dots", typeForm, "user[password]=a&user%5Bpassword%5d=b&user.password=c&password[]=d&password[0][x]=e&a[b[password]=f", "user[password]=REDACTED&user%5Bpassword%5d=REDACTED&user.password=REDACTED&password[]=REDACTED&password[0][x]=REDACTED&a[b[password]=REDACTED"},
	{"a longer name of a form is no field", typeForm, "password2=a&mypassword=b&user[password2]=c&a=password=d&a=x.password=e", "password2=a&mypassword=b&user[password2]=c&a=password=d&a=x.password=e"},
	{"spaces before a name", typeForm, "\r\npassword=a&+token=b&%20token=c", "\r\npassword=REDACTED&+token=REDACTED&%20token=REDACTED"},
	{"a name without a value", typeForm, "password&a=1&token", "password&a=1&token"},
	{"a value with = in it", typeForm, "password=a=b==&c=d", "password=REDACTED&c=d"},
	{"a semicolon before another field, which most take for a part of the value", typeForm, "a=1;password=b;token=c;d=e&f=g", "a=1;password=REDACTED&f=g"},
	{"a semicolon in a value", typeForm, "password=a;b;&c=d;e&token=f;g", "password=REDACTED&c=d;e&token=REDACTED"},
	{"a form that was cut", typeForm, "a=b&password=s3c%7", "a=b&password=REDACTED"},
	{"a form that begins with a bracket", typeForm, "[password]=a&b=c", "[password]=REDACTED&b=c"},
	{"a form that begins as a list does", typeForm, "[0].Password=s3cr3t&[0].user=a&[1].password=s3cr3t", "[0].Password=REDACTED&[0].user=a&[1].password=REDACTED"},
	{"a form that begins as an empty list does", typeForm, "[]=1&password=s3cr3t", "[]=1&password=REDACTED"},
	{"a form that begins as an object does", typeForm, " {x}=1&password=s3cr3t&a=b", " {x}=1&password=REDACTED&a=b"},
	{"JSON that is said to be a form, and is none of both", typeForm, `{a:1,"password":"x"}`, `{a:1,"password":"REDACTED"}`},
	{"JSON that is said to be a form, and was cut", typeForm, `{"a":"b","password":"s3c`, `{"a":"b","password":"REDACTED"`},
	{"JSON that is said to be a form stays valid", typeForm, `{"url":"/?a=1&token=x","password":"x"}`, `{"url":"/?a=1&token=x","password":"REDACTED"}`},
	{"parts of pages, as in JSF and ASP.NET", typeForm, "form:password=a&ctl00%24Main%24Password=b&form%3Atoken=c&$token=d", "form:password=REDACTED&ctl00%24Main%24Password=REDACTED&form%3Atoken=REDACTED&$token=REDACTED"},
	{"what PHP takes for an underscore", typeForm, "client_secret=a&client+secret=b&client.secret=c&client%20secret=d&client%2Esecret=e&Client[secret=f&client%5Fsecret=g", "client_secret=REDACTED&client+secret=REDACTED&client.secret=REDACTED&client%20secret=REDACTED&client%2Esecret=REDACTED&Client[secret=REDACTED&client%5Fsecret=REDACTED"},
	{"a name that has an end for PHP", typeForm, "password%00a=b&password\x00=c", "password%00a=REDACTED&password\x00=REDACTED"},
	{"a form without a type, which Rails takes for one", "", "user=a&password=s3cr3t", "user=a&password=REDACTED"},
	{"a type that has a comma or a space in it", "Application/x-www-form-urlencoded, text/html", "password=s3cr3t", "password=REDACTED"},
	{"JSON in a value, as GitHub and Slack have it", typeForm, "payload=%7B%22token%22%3A%22s3c%26r3t%22%2C%22a%22%3A%22b%22%7D&a=%7B%22b%22%3A1%7d", "payload=%7B%22token%22%3A%22REDACTED%22%2C%22a%22%3A%22b%22%7D&a=%7B%22b%22%3A1%7d"},
	{"JSON in a value, as curl -d has it", typeForm, `a= [{"p\u0061ssword":"s3cr3t"}]&b={"c":1}&d={"e"`, `a=+%5B%7B%22p%5Cu0061ssword%22%3A%22REDACTED%22%7D%5D&b={"c":1}&d={"e"`},
	{"JSON in a value that was cut", typeForm, "payload=%7B%22token%22%3A%22s3cr3t%2", "payload=%7B%22token%22%3A%22REDACTED%22"},
	{"what begins as JSON in a value, and cannot be read", typeForm, "a={100%, token}&b={1}", "a=REDACTED&b={1}"},
	{"bytes of a form that are no UTF-8", typeForm, "a=\xff&password=\xff&\xff=b", "a=\xff&password=REDACTED&\xff=b"},
}

func TestFieldsOfBodiesAreRedacted(t *testing.T) {
	f := newBodyFields(hiddenNames)
	for _, c := range bodyCases {
		content := []byte(c.body)
		got, withheld := redactBody(f, bodyHeader(c.contentType), content)
		if string(got) != c.want || withheld {
			t.Errorf("%s: %s: got %s, withheld %v; want %s", c.name, c.body, got, withheld, c.want)
		}
		if string(content) != c.body {
			t.Errorf("%s: got the body itself changed to %s; want it as it was", c.name, content)
		}
	}
}

// The line breaks of a body in parts are CRLF.
var partCases = []struct {
	name, body, want string
}{
	{"a field among others",
		"--b\nContent-Disposition: form-data; name=\"user\"\n\nann\n--b\nContent-Disposition: form-data; name=\"password\"\n\ns3cr3t\n--b--\n",
		"--b\nContent-Disposition: form-data; name=\"user\"\n\nann\n--b\nContent-Disposition: form-data; name=\"password\"\n\nREDACTED\n--b--\n"},
	{"a value of several lines, and an empty one",
		"--b\nContent-Disposition: form-data; name=\"password\"\n\ns3c\n\nr3t\n--\n--b\nContent-Disposition: form-data; name=\"token\"\n\n\n--b--",
		"--b\nContent-Disposition: form-data; name=\"password\"\n\nREDACTED\n--b\nContent-Disposition: form-data; name=\"token\"\n\nREDACTED\n--b--"},
	{"any order of parameters, quoted or not, in any case",
		"--b\ncontent-type: text/plain\nCONTENT-disposition: form-data; filename=\"x\"; NAME=PassWord\n\ns3cr3t\n--b\nContent-Disposition: form-data; name=token; filename=y\n\ns3cr3t\n--b--\n",
		"--b\ncontent-type: text/plain\nCONTENT-disposition: form-data; filename=\"x\"; NAME=PassWord\n\nREDACTED\n--b\nContent-Disposition: form-data; name=token; filename=y\n\nREDACTED\n--b--\n"},
	{"names with escapes, brackets and folded lines",
		"--b\nContent-Disposition: form-data;\n name=\"user[password]\"\n\ns3cr3t\n--b\nContent-Disposition: form-data; name=\"a\\\"b\\\\c\"\n\ns3cr3t\n--b\nContent-Disposition: form-data; name=\"a%22b\\\\c\"\n\ns3cr3t\n--b\nContent-Disposition: form-data; name*=UTF-8''gr%C3%B6%C3%9Fe\n\ns3cr3t\n--b--\n",
		"--b\nContent-Disposition: form-data;\n name=\"user[password]\"\n\nREDACTED\n--b\nContent-Disposition: form-data; name=\"a\\\"b\\\\c\"\n\nREDACTED\n--b\nContent-Disposition: form-data; name=\"a%22b\\\\c\"\n\nREDACTED\n--b\nContent-Disposition: form-data; name*=UTF-8''gr%C3%B6%C3%9Fe\n\nREDACTED\n--b--\n"},
	{"other parts stay, whatever is in them",
		"--b\nContent-Disposition: form-data; name=\"file\"; filename=\"; name=password\"\nContent-Type: image/png\n\n\x89PNG\x00\xffname=\"password\"\npassword=x\n--b\nContent-Disposition: form-data; name=\"password2\"\n\nb\n--b--\n",
		"--b\nContent-Disposition: form-data; name=\"file\"; filename=\"; name=password\"\nContent-Type: image/png\n\n\x89PNG\x00\xffname=\"password\"\npassword=x\n--b\nContent-Disposition: form-data; name=\"password2\"\n\nb\n--b--\n"},
	{"JSON in a part",
		"--b\nContent-Disposition: form-data; name=\"operations\"\n\n{\"password\":\"s3cr3t\",\"a\":1}\n--b\nContent-Type: application/json\n\n\"password\":{\n--b--\n",
		"--b\nContent-Disposition: form-data; name=\"operations\"\n\n{\"password\":\"REDACTED\",\"a\":1}\n--b\nContent-Type: application/json\n\n\"password\":\"REDACTED\"\n--b--\n"},
	{"a form in a part, and one that begins as JSON does",
		"--b\nContent-Type: application/x-www-form-urlencoded\n\nuser=a&password=s3cr3t\n--b\nContent-Type: application/x-www-form-urlencoded; charset=utf-8\n\n[0].token=s3cr3t&a=b\n--b--\n",
		"--b\nContent-Type: application/x-www-form-urlencoded\n\nuser=a&password=REDACTED\n--b\nContent-Type: application/x-www-form-urlencoded; charset=utf-8\n\n[0].token=REDACTED&a=b\n--b--\n"},
	{"a value that looks like a form is none",
		"--b\nContent-Disposition: form-data; name=\"note\"\n\npassword=x\n--b\nContent-Disposition: form-data; name=\"note\"\nContent-Type: text/plain; charset=utf-8\nContent-Transfer-Encoding: 8bit\n\npassword=x\n--b--\n",
		"--b\nContent-Disposition: form-data; name=\"note\"\n\npassword=x\n--b\nContent-Disposition: form-data; name=\"note\"\nContent-Type: text/plain; charset=utf-8\nContent-Transfer-Encoding: 8bit\n\npassword=x\n--b--\n"},
	{"parts in a part, and parts in these",
		"--b\nContent-Type: multipart/mixed; boundary=c\n\n--c\nContent-Disposition: form-data; name=\"password\"\n\ns3cr3t\n--c\nContent-Type: multipart/mixed; boundary=d\n\n--d\nContent-Type: application/json\n\n{\"token\":\"s3cr3t\"}\n--d--\n--c--\n--b\n\na\n--b--\n",
		"--b\nContent-Type: multipart/mixed; boundary=c\n\n--c\nContent-Disposition: form-data; name=\"password\"\n\nREDACTED\n--c\nContent-Type: multipart/mixed; boundary=d\n\n--d\nContent-Type: application/json\n\n{\"token\":\"REDACTED\"}\n--d--\n--c--\n--b\n\na\n--b--\n"},
	{"requests in parts, as in a batch of OData",
		"--b\nContent-Type: application/http\nContent-Transfer-Encoding: binary\n\nPOST /users HTTP/1.1\nContent-Type: application/json\n\n{\"password\":\"s3cr3t\"}\n--b--\n",
		"--b\nContent-Type: application/http\nContent-Transfer-Encoding: binary\n\nPOST /users HTTP/1.1\nContent-Type: application/json\n\n{\"password\":\"REDACTED\"}\n--b--\n"},
	{"files without a type, and with zeros",
		"--b\nContent-Disposition: form-data; name=\"file\"; filename=\"a.mp4\"\n\n\x00\x00\x00 ftypisom\x00\n--b\nContent-Type: image/x-icon\nContent-Encoding: gzip\n\n\x00\x00\x01\x00\n--b--\n",
		"--b\nContent-Disposition: form-data; name=\"file\"; filename=\"a.mp4\"\n\n\x00\x00\x00 ftypisom\x00\n--b\nContent-Type: image/x-icon\nContent-Encoding: gzip\n\n\x00\x00\x01\x00\n--b--\n"},
	{"names as PHP reads them",
		"--b\nContent-Disposition: form-data; name='password'\n\ns3cr3t\n--b\nContent-Disposition: form-data; name=\"pass\\word\"\n\ns3cr3t\n--b\nContent-Disposition: form-data; name=\"a\"\nContent-Disposition: form-data; name=\"password\"\n\ns3cr3t\n--b--\n",
		"--b\nContent-Disposition: form-data; name='password'\n\nREDACTED\n--b\nContent-Disposition: form-data; name=\"pass\\word\"\n\nREDACTED\n--b\nContent-Disposition: form-data; name=\"a\"\nContent-Disposition: form-data; name=\"password\"\n\nREDACTED\n--b--\n"},
	{"a value with what looks like a delimiter",
		"--b\nContent-Disposition: form-data; name=\"password\"\n\ns3\n--bcr3t\n--b-\n--b x\n--b\nContent-Disposition: form-data; name=\"a\"\n\nb\n--b--\n",
		"--b\nContent-Disposition: form-data; name=\"password\"\n\nREDACTED\n--b\nContent-Disposition: form-data; name=\"a\"\n\nb\n--b--\n"},
	{"a header that is wrong",
		"--b\nContent-Disposition: form-data; name=\"a\"; name=\"password\"\n\ns3cr3t\n--b\nno header\nContent-Disposition: form-data; name=\"password\"\n\ns3cr3t\n--b\nContent-Disposition: form-data; name=\"a\"; name=\"b\"\n\nc\n--b--\n",
		"--b\nContent-Disposition: form-data; name=\"a\"; name=\"password\"\n\nREDACTED\n--b\nno header\nContent-Disposition: form-data; name=\"password\"\n\nREDACTED\n--b\nContent-Disposition: form-data; name=\"a\"; name=\"b\"\n\nc\n--b--\n"},
	{"what is before and after the parts",
		"hello\n\nworld\n--b\nContent-Disposition: form-data; name=\"password\"\n\ns3cr3t\n--b--\ngood\n\nbye",
		"hello\n\nworld\n--b\nContent-Disposition: form-data; name=\"password\"\n\nREDACTED\n--b--\ngood\n\nbye"},
	{"cut in a value",
		"--b\nContent-Disposition: form-data; name=\"password\"\n\ns3c",
		"--b\nContent-Disposition: form-data; name=\"password\"\n\nREDACTED"},
	{"cut in a header",
		"--b\nContent-Disposition: form-data; name=\"password\"",
		"--b\nContent-Disposition: form-data; name=\"password\""},
	{"a part without a header", "--b\n\npassword\n--b--\n", "--b\n\npassword\n--b--\n"},
	{"no parts", "password", "password"},
}

func TestFieldsOfBodiesInPartsAreRedacted(t *testing.T) {
	f := newBodyFields(hiddenNames)
	for _, c := range partCases {
		for _, lineBreak := range []string{"\r\n", "\n"} {
			body := strings.ReplaceAll(c.body, "\n", lineBreak)
			want := strings.ReplaceAll(c.want, "\n", lineBreak)
			got, withheld := redactBody(f, bodyHeader(`multipart/form-data; boundary="b"`), []byte(body))
			if string(got) != want || withheld {
				t.Errorf("%s: got %q, withheld %v; want %q", c.name, got, withheld, want)
			}
		}
	}
}

func TestBodiesThatCannotBeLookedIntoAreWithheld(t *testing.T) {
	f := newBodyFields(hiddenNames)
	text := `{"a":1}`
	for _, c := range []struct {
		name, contentType, encoding, body string
		want                              bool
	}{
		{"JSON as it is", typeJSON, "", text, false},
		{"identity is no encoding", typeJSON, " Identity, identity,", text, false},
		{"compressed JSON", typeJSON, "gzip", text, true},
		{"compressed after identity", typeJSON, "identity, br", text, true},
		{"a compressed form", typeForm, "gzip", text, true},
		{"compressed parts", "multipart/form-data; boundary=b", "deflate", text, true},
		{"a compressed stream of events", "text/event-stream", "gzip", text, true},
		{"compressed text could be JSON", "text/plain; charset=utf-8", "gzip", text, true},
		{"compressed, and no type", "", "gzip", text, true},
		{"a compressed page", "text/html", "gzip", text, false},
		{"an image", "image/png", "gzip", "\x00\x00\x00\x00", false},
		{"ASCII and its kin", "application/json;charset=\"ISO-8859-15\"", "", text, false},
		{"UTF-16, as the charset says", "application/json; charset=utf-16le", "", text, true},
		{"EBCDIC", "application/x-www-form-urlencoded; charset=ibm037", "", text, true},
		{"UTF-7", "text/plain; Charset = 'utf-7'", "", text, true},
		{"UTF-16, as the bytes say", typeJSON, "", "{\x00\"\x00a\x00", true},
		{"UTF-16 with a byte order mark", "", "", "\xfe\xff\x00{\x00\"", true},
		{"UTF-32", "text/plain", "", "\x00\x00\x00{", true},
		{"parts without a boundary", "multipart/form-data", "", "--b\r\n", true},
		{"parts with a boundary that cannot be read", "multipart/form-data; boundary=\"b", "", "--b\r\n", true},
		{"nothing hides nothing", typeJSON, "gzip", "", false},
		{"nothing but fields", typeJSON, "", "[" + strings.Repeat(`{"token":1},`, 2000), true},
		{"many fields, and more else", typeJSON, "", "[" + strings.Repeat(`{"token":1,"text":"`+strings.Repeat("lorem ipsum ", 10)+`"},`, 2000), false},
		{"what has fields as a form, and others as JSON", typeForm, "", `{"password":"s3c&token=r3t","a":1`, true},
		{"a form of nothing but JSON", typeForm, "", strings.Repeat("a={1}&", 2000), true},
		{"a form with JSON of nothing but fields", typeForm, "", "a=[" + strings.Repeat(`{"token":1},`, 2000), true},
		{"a form of nothing but fields", typeForm, "", strings.Repeat("token=1&", 2000), true},
		{"nothing but parts", "multipart/form-data; boundary=b", "", strings.Repeat("--b\r\n\r\n\r\n", 5000), true},
		{"a part with nothing but fields", "multipart/form-data; boundary=b", "", "--b\r\n\r\n[" + strings.Repeat(`{"token":1},`, 2000) + "\r\n--b--\r\n", true},
	} {
		header := bodyHeader(c.contentType)
		if c.encoding != "" {
			header.Set("Content-Encoding", c.encoding)
		}
		got, withheld := redactBody(f, header, []byte(c.body))
		if withheld != c.want || c.want && got != nil {
			t.Errorf("%s: got %d bytes, withheld %v; want withheld %v", c.name, len(got), withheld, c.want)
		}
	}
}

func TestPartsThatCannotBeLookedIntoAreWithheld(t *testing.T) {
	f := newBodyFields(hiddenNames)
	wide := string([]byte("{\x00\"\x00a\x00\"\x00:\x001\x00}\x00"))
	nested := func(depth int) string {
		body := "Content-Type: application/json\r\n\r\n{\"a\":1}"
		for i := 0; i < depth; i++ {
			body = fmt.Sprintf("Content-Type: multipart/mixed; boundary=c%d.\r\n\r\n--c%d.\r\n%s\r\n--c%d.--", i, i, body, i)
		}
		return body
	}
	many := func(n int, text string) string { return strings.Repeat(text, n) }
	inner := "Content-Type: multipart/mixed; boundary=c\r\n\r\n"
	for _, c := range []struct {
		name, part string
		want       bool
	}{
		{"JSON as it is", "Content-Type: application/json; charset=utf-8\r\nContent-Encoding: identity\r\n\r\n{\"a\":1}", false},
		{"JSON in UTF-16, as the charset says", "Content-Type: application/json; charset=utf-16\r\n\r\n" + wide, true},
		{"JSON in UTF-16, as the bytes say", "Content-Type: application/json\r\n\r\n" + wide, true},
		{"JSON in UTF-16 without a type", "Content-Disposition: form-data; name=\"a\"\r\n\r\n\xff\xfe" + wide, true},
		{"JSON in UTF-16 that is said to be bytes", "Content-Type: application/octet-stream\r\n\r\n" + wide, true},
		{"UTF-7", "Content-Type: text/plain; charset=utf-7\r\n\r\na", true},
		{"compressed JSON", "Content-Type: application/json\r\nContent-Encoding: gzip\r\n\r\nGZ{", true},
		{"compressed, and no type", "Content-Encoding: gzip\r\n\r\nGZ", true},
		{"a compressed form", "Content-Type: application/x-www-form-urlencoded\r\ncontent-encoding: br\r\n\r\nGZ", true},
		{"JSON in base64", "Content-Type: application/json\r\nContent-Transfer-Encoding: base64\r\n\r\neyJhIjoxfQ==", true},
		{"JSON with bytes that are quoted", "Content-Transfer-Encoding: Quoted-Printable\r\n\r\n{\"p=61ssword\":1}", true},
		{"an image in base64", "Content-Type: image/png\r\nContent-Transfer-Encoding: base64\r\n\r\nAAAA", false},
		{"compressed, below a header that is wrong", "no header\r\nContent-Encoding: gzip\r\n\r\nGZ", true},
		{"parts without a boundary", "Content-Type: multipart/mixed\r\n\r\n--c\r\n\r\na", true},
		{"parts in parts in parts", nested(2), false},
		{"parts that are too deep", nested(3), true},
		{"parts that are much too deep", nested(200), true},
		{"parts with the boundary of these, and more", "Content-Type: multipart/mixed; boundary=b2\r\n\r\n--b2\r\n\r\na\r\n--b2--", true},
		{"a form that goes on after what looks like a delimiter", "Content-Type: application/x-www-form-urlencoded\r\n\r\npassword=s3c\r\n--br3t", true},
		{"JSON that goes on after what looks like a delimiter", "\r\n{\"a\":1\r\n--bc\r\n,\"password\":1}", true},
		{"too many parts of parts", many(50, inner+many(90, "--c\r\n\r\n\r\n")+"\r\n--b\r\n") + "\r\n", true},
		{"too many fields in all parts", many(50, "Content-Type: application/json\r\n\r\n["+many(90, `{"token":1},`)+"\r\n--b\r\n") + "\r\n", true},
	} {
		body := "--b\r\n" + c.part + "\r\n--b--\r\n"
		got, withheld := redactBody(f, bodyHeader("multipart/form-data; boundary=b"), []byte(body))
		if withheld != c.want || c.want && got != nil || !c.want && string(got) != body {
			t.Errorf("%s: got %.300q, withheld %v; want withheld %v, or all of it", c.name, got, withheld, c.want)
		}
	}
}

func TestWithoutNamesBodiesAreNotLookedInto(t *testing.T) {
	for _, names := range [][]string{nil, {}, {""}} {
		f := newBodyFields(names)
		if f != nil {
			t.Errorf("%q: got fields; want nil", names)
		}
		header := bodyHeader(typeJSON)
		header.Set("Content-Encoding", "gzip")
		if got, withheld := redactBody(f, header, []byte(`{"":1}`)); string(got) != `{"":1}` || withheld {
			t.Errorf("%q: got %s, withheld %v; want it as it was", names, got, withheld)
		}
	}
}

func TestEveryNameIsFound(t *testing.T) {
	for r := rune(1); r < 0x250; r++ {
		name := "n" + string(r) + "m"
		f := newBodyFields([]string{name, "other"})
		written, _ := json.Marshal(map[string]int{name: 1})
		escapes := fmt.Sprintf(`{"n\u%04xm":1}`, r)
		for _, body := range []string{string(written), strings.ToUpper(escapes[:5]) + escapes[5:], escapes} {
			if !json.Valid([]byte(body)) {
				continue // \U
			}
			if got, _ := redactBody(f, bodyHeader(typeJSON), []byte(body)); !strings.HasSuffix(string(got), `m":"REDACTED"}`) {
				t.Errorf("%q: %s: got %s; want it redacted", name, body, got)
			}
		}
		form := url.QueryEscape(name) + "=1"
		if got, _ := redactBody(f, bodyHeader(typeForm), []byte(form)); !strings.HasSuffix(string(got), "=REDACTED") {
			t.Errorf("%q: %s: got %s; want it redacted", name, form, got)
		}
	}
}

// document is a random JSON text and what is to leave of it. Only what is to be hidden
// has the letters Q and Z in it.
type document struct {
	random *rand.Rand
	text   bytes.Buffer
	want   bytes.Buffer
	hidden bool
}

func (d *document) write(s string) {
	d.text.WriteString(s)
	if !d.hidden {
		d.want.WriteString(s)
	}
}

func (d *document) one(of ...string) string { return of[d.random.Intn(len(of))] }

func (d *document) space() { d.write(d.one("", "", "", " ", "\n", "\t ", "\r\n  ")) }

func (d *document) value(depth int) {
	kind := d.random.Intn(7)
	if depth == 0 {
		kind = d.random.Intn(4)
	}
	switch kind {
	case 0, 1, 2:
		d.scalar()
	case 3:
		d.write(`""`)
	case 4:
		d.write("[")
		d.space()
		for i, n := 0, d.random.Intn(4); i < n; i++ {
			if i > 0 {
				d.write(",")
			}
			d.space()
			d.value(depth - 1)
			d.space()
		}
		d.write("]")
	default:
		d.object(depth)
	}
}

func (d *document) scalar() {
	if d.hidden {
		d.write(d.one(`"QZ7"`, `"Q\"Z\\"`, `"\\\"Z,7}]"`, `"\u0051\n7"`, `"\"password\":\"Z\""`, "7", "-77.7e+77", "true", "null", "\"\xffZ\xe2\"", `"{\"password\":7"`))
		return
	}
	d.write(d.one(`"a b"`, `"\"password\":\"x\""`, `"\\"`, `"\\\""`, `"password"`, "0", "-1.50", "1e400", "12345678901234569089", "false", "null", `"😀ö"`, "\"\xff\xe2\"", `"\ud83d"`, `"\u0070assword\":1"`, `"x.y*("`))
}

func (d *document) object(depth int) {
	d.write("{")
	d.space()
	for i, n := 0, d.random.Intn(5); i < n; i++ {
		if i > 0 {
			d.write(",")
			d.space()
		}
		hide := !d.hidden && d.random.Intn(3) == 0
		if hide || d.hidden && d.random.Intn(3) == 0 {
			d.write(d.key(d.one(hiddenNames...)))
		} else {
			d.write(d.one(`"user"`, `"note\""`, `"password2"`, `"my password"`, `"passwor"`, `"\\"`, `"п"`, `""`, `"p\u0061ss"`, `"\"password\" "`))
		}
		d.space()
		d.write(":")
		d.space()
		if hide {
			d.want.WriteString(`"REDACTED"`)
			d.hidden = true
			d.value(depth - 1)
			d.hidden = false
		} else {
			d.value(depth - 1)
		}
		d.space()
	}
	d.write("}")
}

// key writes a name in one of the ways that JSON has.
func (d *document) key(name string) string {
	key := ""
	for _, r := range name {
		if d.random.Intn(2) == 0 {
			r = []rune(strings.ToUpper(string(r)))[0]
		}
		escapes := d.random.Intn(4) == 0
		if escapes && r > 0xffff {
			high, low := utf16.EncodeRune(r)
			key += fmt.Sprintf(`\u%04x\u%04X`, high, low)
		} else if escapes {
			key += fmt.Sprintf(d.one(`\u%04x`, `\u%04X`), r)
		} else if r == '"' || r == '\\' {
			key += `\` + string(r)
		} else {
			key += string(r)
		}
	}
	return `"` + key + `"`
}

// TestNothingOfASecretLeavesHoweverABodyIsCut takes every prefix of random documents.
func TestNothingOfASecretLeavesHoweverABodyIsCut(t *testing.T) {
	f := newBodyFields(hiddenNames)
	documents := 40
	step := 3 // in each document another third of its prefixes
	for seed := 0; seed < documents; seed++ {
		d := &document{random: rand.New(rand.NewSource(int64(seed)))}
		d.object(4)
		text := d.text.Bytes()
		want := d.want.String()
		if !json.Valid(text) {
			t.Fatalf("got a document that is no JSON: %s", text)
		}
		got, withheld := redactBody(f, bodyHeader(typeJSON), text)
		if string(got) != want || withheld {
			t.Fatalf("document %d: %s: got %s, withheld %v; want %s", seed, text, got, withheld, want)
		}
		sameButRedacted(t, text, got)
		for end := seed % step; end < len(text); end += step {
			got, withheld = redactBody(f, bodyHeader(typeJSON), text[:end:end])
			// What leaves of a part is a part of what leaves of the whole.
			if !strings.HasPrefix(want, string(got)) || bytes.ContainsAny(got, "QZ") || withheld {
				t.Fatalf("document %d: %s: got %s, withheld %v; want a part of %s", seed, text[:end], got, withheld, want)
			}
		}
	}
}

// sameButRedacted compares what a decoder makes of a JSON text and of what leaves of it.
func sameButRedacted(t testing.TB, text, got []byte) {
	t.Helper()
	want := blank(decoded(t, text))
	if left := decoded(t, got); !reflect.DeepEqual(left, want) {
		t.Fatalf("%s: got %s; want the same but for the fields", text, got)
	}
}

func decoded(t testing.TB, text []byte) interface{} {
	t.Helper()
	var v interface{}
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.UseNumber()
	if err := decoder.Decode(&v); err != nil {
		t.Fatalf("%s: got error %v; want JSON", text, err)
	}
	return v
}

// blank is another, naive way to redact.
func blank(v interface{}) interface{} {
	if list, ok := v.([]interface{}); ok {
		for i := range list {
			list[i] = blank(list[i])
		}
	}
	if object, ok := v.(map[string]interface{}); ok {
		for name, value := range object {
			object[name] = blank(value)
			for _, hidden := range hiddenNames {
				quoted := strings.LastIndexByte(strings.TrimSuffix(name, `"b\c`), '"') // a key may end with a quote and the name
				if strings.EqualFold(name, hidden) || quoted >= 0 && strings.EqualFold(name[quoted+1:], hidden) {
					object[name] = redacted
				}
			}
		}
	}
	return v
}

// partsIn are the parts of a body, by a reader that has nothing to do with ours; nil if
// it cannot read them.
func partsIn(contentType string, body []byte) (names, contents []string) {
	_, params, err := mime.ParseMediaType(contentType)
	if err != nil {
		return nil, nil
	}
	reader := multipart.NewReader(bytes.NewReader(body), params["boundary"])
	for {
		part, err := reader.NextRawPart()
		if err == io.EOF {
			return names, contents
		}
		if err != nil {
			return nil, nil
		}
		content, err := io.ReadAll(part)
		if err != nil {
			return nil, nil
		}
		names = append(names, part.FormName())
		contents = append(contents, string(content))
	}
}

func TestPartsAreThoseThatAReaderSees(t *testing.T) {
	f := newBodyFields(hiddenNames)
	for seed := 0; seed < 20; seed++ {
		random := rand.New(rand.NewSource(int64(seed)))
		buffer := &bytes.Buffer{}
		var sink io.Writer = buffer
		w := multipart.NewWriter(sink)
		names := []string{"password", "Token", "user[password]", "größe", `a"b\c`, "user", "password2", "note"}
		for i := random.Intn(8); i > 0; i-- {
			content := strings.Repeat([]string{"QZ7", "\r\n", "--", "\n--", "password=", "\x00\xff"}[random.Intn(6)], random.Intn(5))
			name := names[random.Intn(len(names))]
			part, err := w.CreateFormField(name)
			if random.Intn(2) == 0 {
				part, err = w.CreateFormFile(name, "password.txt")
			}
			if err != nil {
				t.Fatal(err)
			}
			_, _ = io.WriteString(part, content)
		}
		_ = w.Close()
		body := buffer.Bytes()
		contentType := w.FormDataContentType()
		got, withheld := redactBody(f, bodyHeader(contentType), body)
		if withheld {
			t.Fatalf("%q: got it withheld; want it redacted", body)
		}
		before, contents := partsIn(contentType, body)
		after, left := partsIn(contentType, got)
		if !reflect.DeepEqual(before, after) {
			t.Fatalf("got parts %q; want %q", after, before)
		}
		for i, name := range before {
			want := contents[i]
			if name != "user" && name != "password2" && name != "note" {
				want = redacted
			}
			if left[i] != want {
				t.Errorf("part %q: %q: got %q; want %q", name, contents[i], left[i], want)
			}
		}
		// Of a body that was cut leaves a part of the whole.
		for end := seed; end < len(body); end += 20 {
			cut, _ := redactBody(f, bodyHeader(contentType), body[:end:end])
			if !bytes.HasPrefix(got, bytes.TrimSuffix(cut, []byte(redacted))) {
				t.Fatalf("%q: got %q; want a part of %q", body[:end], cut, got)
			}
		}
	}
}

// FuzzRedactBody reads what leaves of a body as a backend would, and again what leaves
// of a part of it.
func FuzzRedactBody(f *testing.F) {
	types := []string{typeJSON, typeForm, "multipart/form-data; boundary=b", ""}
	for _, c := range bodyCases {
		for i := range types {
			f.Add(uint8(i), []byte(c.body), uint16(len(c.body)/2))
		}
	}
	for _, c := range partCases {
		f.Add(uint8(2), []byte(strings.ReplaceAll(c.body, "\n", "\r\n")), uint16(40))
		f.Add(uint8(2), []byte(c.body), uint16(len(c.body)-1))
	}
	for seed := 0; seed < 20; seed++ {
		d := &document{random: rand.New(rand.NewSource(int64(seed)))}
		d.object(3)
		f.Add(uint8(seed%2*3), d.text.Bytes(), uint16(d.random.Intn(d.text.Len())))
	}
	fields := newBodyFields(hiddenNames)
	f.Fuzz(func(t *testing.T, kind uint8, body []byte, end uint16) {
		contentType := types[int(kind)%len(types)]
		header := bodyHeader(contentType)
		before := string(body)
		got, withheld := redactBody(fields, header, body)
		if string(body) != before {
			t.Fatalf("got the body itself changed to %q; want %q", body, before)
		}
		if withheld {
			return
		}
		if again, _ := redactBody(fields, header, got); !bytes.Equal(again, got) {
			t.Fatalf("%q: got %q, and of that %q; want nothing left to redact", body, got, again)
		}
		cut, _ := redactBody(fields, header, body[:int(end)%(len(body)+1)])
		switch contentType {
		case typeJSON:
			if valid := json.Valid(body); valid != json.Valid(got) && (valid || !bytes.Contains(got, []byte(redacted))) {
				t.Fatalf("%q: got %q; want JSON of JSON only", body, got)
			} else if valid {
				sameButRedacted(t, body, got)
				if !bytes.HasPrefix(got, cut) {
					t.Fatalf("%q, %d bytes: got %q; want a part of %q", body, end, cut, got)
				}
			}
		case typeForm:
			if !json.Valid(body) && !bytes.Contains(got, []byte(redactedJSON)) {
				sameButRedactedForm(t, string(body), string(got))
			}
		case types[2]:
			samePartsButRedacted(t, contentType, body, got)
		}
	})
}

// underscored is what PHP makes of names, in part.
var underscored = strings.NewReplacer(" ", "_", ".", "_", "[", "_")

// sameButRedactedForm reads a form as most do now, for which a semicolon is a character.
func sameButRedactedForm(t *testing.T, body, got string) {
	t.Helper()
	if strings.Contains(body, ";") {
		return
	}
	pairs, left := strings.Split(body, "&"), strings.Split(got, "&")
	if len(pairs) != len(left) {
		t.Fatalf("%q: got %q; want as many fields", body, got)
	}
	for i, pair := range pairs {
		name, _, found := strings.Cut(pair, "=")
		decoded, err := url.QueryUnescape(name)
		if err != nil {
			continue
		}
		hidden, alike := false, !utf8.ValidString(name)
		for _, part := range append(strings.FieldsFunc(decoded, func(r rune) bool { return strings.ContainsRune("[].", r) }), decoded) {
			part = strings.TrimLeft(part, " \t\r\n\v\f")
			for _, name := range hiddenNames {
				hidden = hidden || strings.EqualFold(part, name)
				alike = alike || strings.Contains(underscored.Replace(strings.ToLower(decoded)), underscored.Replace(strings.ToLower(name)))
			}
		}
		want := pair
		if hidden && found {
			want = name + "=" + redacted
		}
		if left[i] != want && (hidden || !alike && !valueStart.MatchString(pair)) {
			t.Fatalf("%q: got %q; want %q", body, left[i], want)
		}
	}
}

func samePartsButRedacted(t *testing.T, contentType string, body, got []byte) {
	t.Helper()
	names, contents := partsIn(contentType, body)
	after, left := partsIn(contentType, got)
	if names == nil || bytes.Contains(body, []byte("\r\n")) && bytes.Contains(bytes.ReplaceAll(body, []byte("\r\n"), nil), []byte("\n")) {
		return // where line breaks are mixed, readers differ in what is a delimiter
	}
	if !reflect.DeepEqual(names, after) {
		t.Fatalf("%q: got parts %q; want %q", body, after, names)
	}
	for i, name := range names {
		for _, hidden := range hiddenNames {
			if strings.EqualFold(name, hidden) && left[i] != redacted && contents[i] != "" {
				t.Fatalf("%q: got %q in part %q; want it redacted", body, left[i], name)
			}
		}
	}
}

func BenchmarkRedactBody(b *testing.B) {
	f := newBodyFields([]string{"password", "token", "client_secret", "card_number"})
	record := `{"id":12345,"name":"some name","text":"some \"text\" \u00e9","tags":["a","b"],"password":"s3cr3t"},`
	for _, c := range []struct {
		name, contentType, body string
	}{
		{"login", typeJSON, `{"username":"ann","password":"s3cr3t"}`},
		{"without a field", typeJSON, "[" + strings.Repeat(strings.ReplaceAll(record, "password", "remark"), 10<<10/len(record)) + "1]"},
		{"a field in each record", typeJSON, "[" + strings.Repeat(record, 10<<10/len(record)) + "1]"},
		{"a large one", typeJSON, "[" + strings.Repeat(record, 1<<20/len(record)) + "1]"},
		{"a form", typeForm, "username=ann&password=s3cr3t&remember=1"},
		{"an upload", "multipart/form-data; boundary=b", "--b\r\nContent-Disposition: form-data; name=\"file\"\r\n\r\n" + strings.Repeat("\x89\x00\r\n", 1<<18) + "\r\n--b--\r\n"},
	} {
		b.Run(c.name, func(b *testing.B) {
			header := bodyHeader(c.contentType)
			body := []byte(c.body)
			b.SetBytes(int64(len(body)))
			b.ReportAllocs()
			for i := 0; i < b.N; i++ {
				if _, withheld := redactBody(f, header, body); withheld {
					b.Fatal("got it withheld; want it redacted")
				}
			}
		})
	}
}

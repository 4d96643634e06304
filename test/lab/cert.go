package lab

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

const (
	certFile = "cert.pem"
	keyFile  = "key.pem"
)

// Certificate is a self-made certificate and its key, in PEM.
type Certificate struct {
	Cert, Key []byte
}

// NewCertificate makes a certificate for the names and for loopback, its own
// authority, good for a day.
func NewCertificate(names ...string) (Certificate, error) {
	c, _, err := sign(nil, Server, func(template *x509.Certificate) {
		template.DNSNames = names
		template.IsCA = true
		template.KeyUsage |= x509.KeyUsageCertSign
	})
	return c, err
}

// Authority issues certificates.
type Authority struct {
	Certificate
	issuer *issuer
}

type issuer struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// NewAuthority makes an authority of its own.
func NewAuthority() (Authority, error) {
	c, i, err := sign(nil, func(template *x509.Certificate) {
		template.Subject.CommonName = "requestmirror lab authority"
		template.IsCA = true
		template.KeyUsage |= x509.KeyUsageCertSign
	})
	return Authority{c, i}, err
}

// A Trait is what a certificate is to be like, unless it is for loopback and good for
// a day.
type Trait = func(*x509.Certificate)

// Server makes it one of servers.
func Server(template *x509.Certificate) {
	template.ExtKeyUsage = append(template.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
}

// Client makes it one of clients.
func Client(template *x509.Certificate) {
	template.ExtKeyUsage = append(template.ExtKeyUsage, x509.ExtKeyUsageClientAuth)
}

// Expired makes it end an hour ago.
func Expired(template *x509.Certificate) {
	template.NotBefore = time.Now().Add(-2 * time.Hour)
	template.NotAfter = time.Now().Add(-time.Hour)
}

// Named makes it one for a name, and not for loopback.
func Named(name string) Trait {
	return func(template *x509.Certificate) {
		template.DNSNames = []string{name}
		template.IPAddresses = nil
	}
}

// Issue makes a certificate that is signed by the authority.
func (a Authority) Issue(traits ...Trait) (Certificate, error) {
	c, _, err := sign(a.issuer, traits...)
	return c, err
}

// sign makes a certificate; without an issuer, it is signed by itself.
func sign(by *issuer, traits ...Trait) (Certificate, *issuer, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return Certificate{}, nil, err
	}
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		return Certificate{}, nil, err
	}
	template := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{CommonName: "requestmirror lab"},
		NotBefore:             time.Now().Add(-time.Hour),
		NotAfter:              time.Now().Add(24 * time.Hour),
		IPAddresses:           []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback},
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageDigitalSignature,
	}
	for _, trait := range traits {
		trait(template)
	}
	if by == nil {
		by = &issuer{template, key}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, by.cert, &key.PublicKey, by.key)
	if err != nil {
		return Certificate{}, nil, err
	}
	made, err := x509.ParseCertificate(der)
	if err != nil {
		return Certificate{}, nil, err
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return Certificate{}, nil, err
	}
	return Certificate{
		Cert: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		Key:  pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret}),
	}, &issuer{made, key}, nil
}

// Pool trusts this certificate and nothing else.
func (c Certificate) Pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(c.Cert)
	return pool
}

func (c Certificate) serverTLS() (*tls.Config, error) {
	pair, err := tls.X509KeyPair(c.Cert, c.Key)
	if err != nil {
		return nil, err
	}
	return &tls.Config{Certificates: []tls.Certificate{pair}}, nil
}

func (c Certificate) write(dir string) error {
	if err := os.WriteFile(filepath.Join(dir, certFile), c.Cert, 0o600); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, keyFile), c.Key, 0o600)
}
